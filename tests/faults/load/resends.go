package main

import (
	"context"

	"google.golang.org/grpc/stats"
)

// resends counts what grpc-go repeats by itself, which WithDisableRetry does
// not switch off. The key of its own type in a call's context is the call's line.
type resends struct{}

func (resends) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if begin, ok := event.(*stats.Begin); ok && begin.IsTransparentRetryAttempt {
		if l, ok := ctx.Value(resends{}).(*line); ok {
			l.Resent++ // By the goroutine that makes the call.
		}
	}
}

func (resends) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (resends) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (resends) HandleConn(context.Context, stats.ConnStats) {}
