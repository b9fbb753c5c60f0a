// The way that failed: each trigger takes all shops of its area to the database
// itself, in large transactions, in its own order, and tries again when the
// database throws it out.
//
// The triggers are fired one shortly after the other, so what should stand at
// the end is the last one's radius. Writes what happened as one JSON line.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	deadlock    = "40P01"
	lockTimeout = "55P03"
	firedApart  = 100 * time.Millisecond
	attemptsMax = 5
	pause       = 100 * time.Millisecond
	runMax      = 5 * time.Minute
)

var radii = [3]int{3000, 2000, 1000}

type account struct {
	Shops        int     `json:"shops"`
	Transactions int     `json:"transactions"`
	Deadlocks    int     `json:"deadlocks"`
	LockTimeouts int     `json:"lock_timeouts"`
	GivenUp      int     `json:"given_up"`
	ShopsLost    int     `json:"shops_lost"`
	Wrong        int     `json:"wrong"`
	Seconds      float64 `json:"seconds"`
	mutex        sync.Mutex
}

func main() {
	database := flag.String("database", "", "URL of the database")
	shops := flag.Int("shops", 20_000, "shops")
	size := flag.Int("size", 2_000, "shops in a transaction")
	seed := flag.Uint64("seed", 1, "chooses the orders")
	flag.Parse()
	a := &account{Shops: *shops}
	if err := a.run(*database, *size, *seed); err != nil {
		log.Fatal(err)
	}
	words, err := json.Marshal(a)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(words))
}

func (a *account) run(database string, size int, seed uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), runMax)
	defer cancel()
	var underWay sync.WaitGroup
	failures := make(chan error, len(radii))
	began := time.Now()
	for trigger := range radii {
		underWay.Go(func() {
			if err := a.trigger(ctx, database, trigger, size, seed); err != nil {
				failures <- fmt.Errorf("trigger %d: %w", trigger+1, err)
			}
		})
		time.Sleep(firedApart)
	}
	underWay.Wait()
	a.Seconds = time.Since(began).Seconds()
	select {
	case err := <-failures:
		return err
	default:
	}
	connection, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close(ctx) }()
	return connection.QueryRow(ctx, "SELECT count(*) FROM naive_shop WHERE radius_m <> $1", radii[len(radii)-1]).Scan(&a.Wrong)
}

func (a *account) trigger(ctx context.Context, database string, trigger, size int, seed uint64) error {
	connection, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close(ctx) }()
	order := rand.New(rand.NewPCG(seed, uint64(trigger))).Perm(a.Shops)
	for len(order) > 0 {
		part := order[:min(size, len(order))]
		order = order[len(part):]
		if err := a.insist(ctx, connection, trigger, part); err != nil {
			return err
		}
	}
	return nil
}

// insist repeats a transaction that the database has thrown out.
func (a *account) insist(ctx context.Context, connection *pgx.Conn, trigger int, shops []int) error {
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, connection, func(tx pgx.Tx) error {
			for _, shop := range shops {
				if _, err := tx.Exec(ctx, "UPDATE naive_shop SET radius_m = $2 WHERE id = $1", shop+1, radii[trigger]); err != nil {
					return err
				}
			}
			return nil
		})
		var refused *pgconn.PgError
		isRefused := errors.As(err, &refused)
		a.mutex.Lock()
		a.Transactions++
		switch {
		case isRefused && refused.Code == deadlock:
			a.Deadlocks++
		case isRefused && refused.Code == lockTimeout:
			a.LockTimeouts++
		}
		givesUp := isRefused && attempt == attemptsMax
		if givesUp {
			a.GivenUp++
			a.ShopsLost += len(shops)
		}
		a.mutex.Unlock()
		switch {
		case err == nil || givesUp:
			return nil
		case !isRefused || refused.Code != deadlock && refused.Code != lockTimeout:
			return err
		}
		time.Sleep(pause)
	}
}
