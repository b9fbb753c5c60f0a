// The third party that takes the money: a process of its own, slow in the way
// of such services, and wrong now and then.
//
// What it is asked for has a reference, and it does a thing once under each:
// who asks again gets the answer of before, or waits for it. Its ledger is what
// really happened.
//
//	POST /charges   {"reference","order_id","amount_minor","currency"}
//	POST /refunds   {"reference","order_id","charge_id"}
//	POST /void      {"reference"}: what became of it; what was not done by now never will be
//	POST /behaviour see behaviour
//	GET  /ledger    everything that happened
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"
)

const (
	bodyBytesMax  = 64 << 10
	headerTimeout = 10 * time.Second
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "HOST:PORT")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	books := newLedger()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charges", books.serve(books.charge))
	mux.HandleFunc("POST /refunds", books.serve(books.refund))
	mux.HandleFunc("POST /void", books.serveVoid)
	mux.HandleFunc("POST /behaviour", books.serveBehaviour)
	mux.HandleFunc("GET /ledger", books.serveLedger)
	fmt.Printf("third party ready http://%s\n", listener.Addr())
	server := http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	log.Fatal(server.Serve(listener))
}

// serve answers after as long as the behaviour says, in the way it says.
func (l *ledger) serve(book func(order) *entry) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var asked order
		if err := decode(w, r, &asked); err != nil || asked.Reference == "" || asked.OrderID == "" {
			http.Error(w, "reference and order_id must be set", http.StatusBadRequest)
			return
		}
		own, known := l.enter(asked.Reference)
		if known {
			l.repeat(w, own)
			return
		}
		mood := l.mood()
		time.Sleep(mood.wait)
		if mood.refuses {
			l.leave(asked.Reference, own)
			refuse(w)
			return
		}
		booked := l.settle(own, book(asked))
		if mood.drops {
			hangUp(w)
			return
		}
		time.Sleep(mood.hang)
		answer(w, booked)
	}
}

// repeat waits for the one who asked first, and answers as it was answered.
func (l *ledger) repeat(w http.ResponseWriter, first *entry) {
	<-first.settled
	if found := l.copyOf(first); found.State != "" {
		answer(w, found)
		return
	}
	refuse(w)
}

func refuse(w http.ResponseWriter) {
	http.Error(w, "come back later", http.StatusServiceUnavailable)
}

func (l *ledger) serveVoid(w http.ResponseWriter, r *http.Request) {
	var asked order
	if err := decode(w, r, &asked); err != nil || asked.Reference == "" {
		http.Error(w, "reference must be set", http.StatusBadRequest)
		return
	}
	own, known := l.enter(asked.Reference)
	if known {
		l.repeat(w, own)
		return
	}
	answer(w, l.settle(own, &entry{Kind: "void", State: "void", OrderID: asked.OrderID}))
}

func (l *ledger) serveBehaviour(w http.ResponseWriter, r *http.Request) {
	var wanted behaviour
	if err := decode(w, r, &wanted); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l.behave(wanted)
}

func (l *ledger) serveLedger(w http.ResponseWriter, _ *http.Request) { answer(w, l.all()) }

func decode(w http.ResponseWriter, r *http.Request, into any) error {
	return json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyBytesMax)).Decode(into)
}

func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(what); err != nil {
		log.Print(err)
	}
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter) {
	if connection, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = connection.Close()
	}
}
