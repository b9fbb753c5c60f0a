package main

import (
	"sync"
	"time"
)

const lagTick = 10 * time.Millisecond

// lagMeter knows how late this process's own timers were, by the tenth of a
// second: with more to do than processors, it is not the gateway that is late.
type lagMeter struct {
	mutex sync.Mutex
	worst map[int64]float64
}

func newLagMeter() *lagMeter {
	meter := &lagMeter{worst: map[int64]float64{}}
	go meter.run()
	return meter
}

func (m *lagMeter) run() {
	for {
		before := time.Now()
		time.Sleep(lagTick)
		now := time.Now()
		lag := (now.Sub(before) - lagTick).Seconds()
		m.mutex.Lock()
		for tenth := tenths(before); tenth <= tenths(now); tenth++ {
			m.worst[tenth] = max(m.worst[tenth], lag)
		}
		m.mutex.Unlock()
	}
}

// around is the worst in the second before.
func (m *lagMeter) around(moment time.Time) float64 {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	worst := 0.0
	for tenth := tenths(moment) - 10; tenth <= tenths(moment)+1; tenth++ {
		worst = max(worst, m.worst[tenth])
	}
	return worst
}

func tenths(t time.Time) int64 { return t.UnixMilli() / 100 }
