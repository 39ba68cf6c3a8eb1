// Command interop puts the libraries of the tiled-log world, unchanged, in front of a Treehead log, and the other way
// round: what they write, Treehead's core must read.
//
//	read LIBRARY URL VKEY      verify checkpoint, tiles and every entry; print what the log holds
//	prove LIBRARY URL VKEY     print the proof that each line of standard input asks for, made from tiles
//	verify VKEY ENTRY PROOF    verify two files offline: an entry and its .tlog-proof
//	write FOLDER ORIGIN SIZE   write a log of its own: keys, heads, tiles, bundles and proofs
//	follow URL VKEY SIZE       read the stream of checkpoints up to a size; print what came
//
// LIBRARY is sumdb (golang.org/x/mod), torchwood or tessera. A VKEY is the key itself, as `tlogd init` prints it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"
)

// timeLimit ends a program whose log does not answer.
const timeLimit = 60 * time.Second

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var command string
	if len(args) == 4 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "read":
		return read(ctx, args[0], args[1], args[2])
	case "prove":
		return prove(ctx, args[0], args[1], args[2])
	case "verify":
		return verify(args[0], args[1], args[2])
	case "write":
		size, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return err
		}
		return write(args[0], args[1], size)
	case "follow":
		size, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return err
		}
		return follow(ctx, args[0], args[1], size)
	}
	return fmt.Errorf("the commands are read, prove, verify, write and follow, with three arguments each")
}

// print writes a value to standard output as one line of JSON.
func print(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
