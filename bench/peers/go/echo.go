package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

const echoMethod = "/echo.v1.EchoService/Echo"

// echoService is what protoc-gen-go-grpc would make of proto/echo, without the
// messages.
var echoService = grpc.ServiceDesc{
	ServiceName: "echo.v1.EchoService",
	HandlerType: (*caller)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: handleEcho}},
	Metadata:    "echo/v1/echo.proto",
}

type caller interface {
	call(ctx context.Context, method string, request []byte) ([]byte, error)
}

func handleEcho(service any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	return service.(caller).call(ctx, echoMethod, request)
}

// rawCodec leaves messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(message any) (mem.BufferSlice, error) {
	bytes, ok := message.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not bytes", message)
	}
	return mem.BufferSlice{mem.SliceBuffer(bytes)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, message any) error {
	bytes, ok := message.(*[]byte)
	if !ok {
		return fmt.Errorf("%T does not take bytes", message)
	}
	*bytes = data.Materialize()
	return nil
}
