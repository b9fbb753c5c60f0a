// A gateway as one would write it in Go: grpc-go in front, franz-go behind,
// request-reply by hand. Serves echo.v1.EchoService for comparison with
// Antiphon; messages stay the bytes that they are, as they do there.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
)

const (
	readyWithin = 30 * time.Second
	stopWithin  = 10 * time.Second
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	bootstrap := flag.String("bootstrap-servers", "127.0.0.1:9092", "brokers, separated by commas")
	topic := flag.String("topic", "echo.v1.EchoService", "the request topic")
	flag.Parse()
	if err := serve(*listen, strings.Split(*bootstrap, ","), *topic); err != nil {
		log.Fatal(err)
	}
}

func serve(listen string, bootstrap []string, topic string) error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	starting, started := context.WithTimeout(stop, readyWithin)
	defer started()
	exchange, err := newExchange(starting, bootstrap, topic)
	if err != nil {
		return err
	}
	defer exchange.close()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}))
	server.RegisterService(&echoService, exchange)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Printf("go peer ready grpc=%s\n", listener.Addr())

	select {
	case err = <-failed:
	case <-stop.Done():
		cut := time.AfterFunc(stopWithin, server.Stop)
		server.GracefulStop()
		cut.Stop()
	}
	return err
}
