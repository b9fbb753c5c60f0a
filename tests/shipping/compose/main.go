// Reads a compose file as `docker compose config` does, by the same library,
// and prints the project as JSON; nothing runs. Wrong files are refused, with
// what is wrong in them.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: compose FILE")
		os.Exit(64)
	}
	options, err := cli.NewProjectOptions([]string{os.Args[1]}, cli.WithInterpolation(true), cli.WithResolvedPaths(false))
	refuse(err)
	project, err := options.LoadProject(context.Background())
	refuse(err)
	text, err := project.MarshalJSON()
	refuse(err)
	fmt.Println(string(text))
}

func refuse(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
