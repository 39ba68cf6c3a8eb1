package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
)

// A library is one implementation of a client for tiled logs.
type library interface {
	// open fetches the checkpoint and verifies its signature.
	open(ctx context.Context) (head, error)
	// entries passes every entry to yield, in order, verified against the head.
	entries(ctx context.Context, yield func(index int64, entry []byte) error) error
	// inclusion makes the proof that an entry is in the tree of a size, and verifies it.
	inclusion(ctx context.Context, index, size int64) ([][]byte, error)
	// consistency makes the proof that the tree of one size continues that of another, and verifies it.
	consistency(ctx context.Context, old, new int64) ([][]byte, error)
}

// A head is what a checkpoint says.
type head struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   []byte `json:"root"`
}

func newLibrary(name, url, vkey string) (library, error) {
	switch name {
	case "sumdb":
		return newSumDB(url, vkey)
	case "torchwood":
		return newTorchwood(url, vkey)
	case "tessera":
		return newTessera(url, vkey)
	}
	return nil, fmt.Errorf("there is no library %s", name)
}

// read prints the head of a log, and the SHA-256 of all its entries, each behind its length in two bytes.
func read(ctx context.Context, name, url, vkey string) error {
	log, err := newLibrary(name, url, vkey)
	if err != nil {
		return err
	}
	head, err := log.open(ctx)
	if err != nil {
		return err
	}
	digest, count := sha256.New(), int64(0)
	err = log.entries(ctx, func(index int64, entry []byte) error {
		if index != count {
			return fmt.Errorf("entry %d came as number %d", index, count)
		}
		count++
		digest.Write([]byte{byte(len(entry) >> 8), byte(len(entry))})
		digest.Write(entry)
		return nil
	})
	if err != nil {
		return err
	}
	if count != head.Size {
		return fmt.Errorf("%d entries in a tree of %d", count, head.Size)
	}
	return print(map[string]any{"head": head, "digest": hex.EncodeToString(digest.Sum(nil))})
}

// prove answers lines such as `inclusion 3 700` and `consistency 3 700`, each with its proof as a list of base64.
func prove(ctx context.Context, name, url, vkey string) error {
	log, err := newLibrary(name, url, vkey)
	if err != nil {
		return err
	}
	if _, err := log.open(ctx); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var kind string
		var from, to int64
		if _, err := fmt.Sscanf(lines.Text(), "%s %d %d", &kind, &from, &to); err != nil {
			return err
		}
		make := log.inclusion
		if kind == "consistency" {
			make = log.consistency
		}
		proof, err := make(ctx, from, to)
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if err := print(append([][]byte{}, proof...)); err != nil {
			return err
		}
	}
	return lines.Err()
}
