// Lint reads files as the programs that they are for would read them, by these
// programs' own libraries, and prints nothing when all is well:
//
//	lint compose FILE       a compose file, as `docker compose config`
//	lint envoy FILE         Envoy's bootstrap, with every rule of its API
//	lint operator FILE...   ServiceMonitor and PrometheusRule, strictly
//
// It exits with 1 and says what is wrong.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) < 3 {
		refuse(fmt.Errorf("usage: lint compose|envoy|operator FILE..."))
	}
	for _, file := range os.Args[2:] {
		var err error
		switch os.Args[1] {
		case "compose":
			err = compose(file)
		case "envoy":
			err = envoy(file)
		case "operator":
			err = operator(file)
		default:
			err = fmt.Errorf("%q is none of compose, envoy, operator", os.Args[1])
		}
		if err != nil {
			refuse(fmt.Errorf("%s: %w", file, err))
		}
	}
}

func refuse(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func compose(file string) error {
	options, err := cli.NewProjectOptions([]string{file}, cli.WithInterpolation(true))
	if err != nil {
		return err
	}
	_, err = options.LoadProject(context.Background())
	return err
}

func envoy(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	json, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return err
	}
	config := &bootstrap.Bootstrap{}
	if err := protojson.Unmarshal(json, config); err != nil {
		return err
	}
	return valid(config.ProtoReflect())
}

// The rules of a message and of everything that is packed into it; the generated
// ValidateAll does not look into an Any.
func valid(message protoreflect.Message) error {
	if checked, ok := message.Interface().(interface{ ValidateAll() error }); ok {
		if err := checked.ValidateAll(); err != nil {
			return err
		}
	}
	if packed, ok := message.Interface().(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			return err
		}
		return valid(inner.ProtoReflect())
	}
	var wrong error
	look := func(value protoreflect.Value) {
		if wrong == nil {
			wrong = valid(value.Message())
		}
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			value.Map().Range(func(_ protoreflect.MapKey, item protoreflect.Value) bool { look(item); return wrong == nil })
		case field.IsList() && field.Message() != nil:
			for at := 0; at < value.List().Len(); at++ {
				look(value.List().Get(at))
			}
		case !field.IsMap() && field.Message() != nil:
			look(value)
		}
		return wrong == nil
	})
	return wrong
}

func operator(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, part := range bytes.Split(text, []byte("\n---\n")) {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal(part, &kind); err != nil {
			return err
		}
		switch kind.Kind {
		case "ServiceMonitor":
			err = yaml.UnmarshalStrict(part, &monitoring.ServiceMonitor{})
		case "PrometheusRule":
			err = yaml.UnmarshalStrict(part, &monitoring.PrometheusRule{})
		default:
			err = fmt.Errorf("%q is none of ServiceMonitor, PrometheusRule", kind.Kind)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
