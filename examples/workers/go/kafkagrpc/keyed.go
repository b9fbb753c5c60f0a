package kafkagrpc

import (
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const idlePoll = 10 * time.Millisecond

// keyed handles requests beside each other, those with one key one after the
// other, and knows how far each partition is done: an offset may be committed
// when all before it are done.
type keyed struct {
	handle func(*kgo.Record) // returns when the reply is acknowledged
	commit func(*kgo.Record) // all of its partition up to this record are done
	places chan struct{}     // bounds what is under way

	mutex   sync.Mutex
	waiting map[string][]*request // by key: behind the one that is being handled
	lanes   map[lane][]*request   // in the order of their offsets
}

type lane struct {
	topic     string
	partition int32
}

type request struct {
	record *kgo.Record
	done   bool
}

func newKeyed(parallel int, handle, commit func(*kgo.Record)) *keyed {
	return &keyed{
		handle: handle, commit: commit, places: make(chan struct{}, parallel),
		waiting: map[string][]*request{}, lanes: map[lane][]*request{},
	}
}

// start takes a request; it waits while there is no place.
func (k *keyed) start(record *kgo.Record) {
	k.places <- struct{}{}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	where := lane{record.Topic, record.Partition}
	taken := &request{record: record}
	k.lanes[where] = append(k.lanes[where], taken)
	name := fmt.Sprintf("%s/%d/key/%s", record.Topic, record.Partition, record.Key)
	if record.Key == nil {
		name = fmt.Sprintf("%s/%d/offset/%d", record.Topic, record.Partition, record.Offset)
	}
	if behind, busy := k.waiting[name]; busy {
		k.waiting[name] = append(behind, taken)
		return
	}
	k.waiting[name] = nil
	go k.run(name, taken)
}

func (k *keyed) run(name string, next *request) {
	for next != nil {
		k.handle(next.record)
		<-k.places
		next = k.finish(name, next)
	}
}

// finish returns the next request with the same key.
func (k *keyed) finish(name string, ended *request) (next *request) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	ended.done = true
	where := lane{ended.record.Topic, ended.record.Partition}
	requests := k.lanes[where]
	var last *kgo.Record
	for len(requests) > 0 && requests[0].done {
		last, requests = requests[0].record, requests[1:]
	}
	k.lanes[where] = requests
	if last != nil {
		k.commit(last)
	}
	behind := k.waiting[name]
	if len(behind) == 0 {
		delete(k.waiting, name)
		return nil
	}
	k.waiting[name] = behind[1:]
	return behind[0]
}

// settle waits until these partitions have nothing under way, or too long.
func (k *keyed) settle(partitions map[string][]int32, limit time.Duration) {
	for until := time.Now().Add(limit); k.busy(partitions) && time.Now().Before(until); {
		time.Sleep(idlePoll)
	}
}

func (k *keyed) busy(partitions map[string][]int32) bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for topic, numbers := range partitions {
		for _, number := range numbers {
			if len(k.lanes[lane{topic, number}]) > 0 {
				return true
			}
		}
	}
	return false
}

// forget what was under way on partitions that have gone; what of it still
// ends is not committed here.
func (k *keyed) forget(partitions map[string][]int32) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for topic, numbers := range partitions {
		for _, number := range numbers {
			delete(k.lanes, lane{topic, number})
		}
	}
}

// all partitions that have had requests.
func (k *keyed) all() map[string][]int32 {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	found := map[string][]int32{}
	for where := range k.lanes {
		found[where.topic] = append(found[where.topic], where.partition)
	}
	return found
}
