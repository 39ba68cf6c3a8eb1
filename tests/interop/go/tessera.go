package main

import (
	"bytes"
	"context"
	"fmt"
	"net/url"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
)

// tesseraLog reads a log with tessera's client.
type tesseraLog struct {
	fetcher *client.HTTPFetcher
	known   note.Verifier
	head    *log.Checkpoint
}

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

func newTessera(address, vkey string) (*tesseraLog, error) {
	known, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	root, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	fetcher, err := client.NewHTTPFetcher(root, nil)
	return &tesseraLog{fetcher: fetcher, known: known}, err
}

func (t *tesseraLog) open(ctx context.Context) (head, error) {
	checkpoint, _, _, err := client.FetchCheckpoint(ctx, t.fetcher.ReadCheckpoint, t.known, t.known.Name())
	if err != nil {
		return head{}, err
	}
	t.head = checkpoint
	return head{checkpoint.Origin, int64(checkpoint.Size), checkpoint.Hash}, nil
}

func (t *tesseraLog) entries(ctx context.Context, yield func(int64, []byte) error) error {
	leaves, err := client.FetchLeafHashes(ctx, t.fetcher.ReadTile, 0, t.head.Size, t.head.Size)
	if err != nil {
		return err
	}
	size := func(context.Context) (uint64, error) { return t.head.Size, nil }
	bundles := client.EntryBundles(ctx, 8, size, t.fetcher.ReadEntryBundle, 0, t.head.Size)
	tree := ranges.NewEmptyRange(0)
	for entry, err := range client.Entries(bundles, unbundle) {
		if err != nil {
			return err
		}
		leaf := rfc6962.DefaultHasher.HashLeaf(entry.Entry)
		if !bytes.Equal(leaf, leaves[entry.Index]) {
			return fmt.Errorf("entry %d has another hash than its leaf", entry.Index)
		}
		if err := tree.Append(leaf, nil); err != nil {
			return err
		}
		if err := yield(int64(entry.Index), entry.Entry); err != nil {
			return err
		}
	}
	root, err := tree.GetRootHash(nil)
	if err == nil && !bytes.Equal(root, t.head.Hash) {
		err = fmt.Errorf("the entries have the root %x instead of %x", root, t.head.Hash)
	}
	return err
}

func unbundle(data []byte) ([][]byte, error) {
	bundle := api.EntryBundle{}
	err := bundle.UnmarshalText(data)
	return bundle.Entries, err
}

func (t *tesseraLog) inclusion(ctx context.Context, index, size int64) ([][]byte, error) {
	builder, err := client.NewProofBuilder(ctx, uint64(size), t.fetcher.ReadTile)
	if err != nil {
		return nil, err
	}
	hashes, err := builder.InclusionProof(ctx, uint64(index))
	if err != nil {
		return nil, err
	}
	leaves, err := client.FetchLeafHashes(ctx, t.fetcher.ReadTile, uint64(index), 1, uint64(size))
	if err != nil {
		return nil, err
	}
	root, err := t.root(ctx, size)
	if err != nil {
		return nil, err
	}
	return hashes, proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(index), uint64(size), leaves[0], hashes, root)
}

func (t *tesseraLog) consistency(ctx context.Context, old, new int64) ([][]byte, error) {
	builder, err := client.NewProofBuilder(ctx, uint64(new), t.fetcher.ReadTile)
	if err != nil {
		return nil, err
	}
	hashes, err := builder.ConsistencyProof(ctx, uint64(old), uint64(new))
	if err != nil {
		return nil, err
	}
	oldRoot, err := t.root(ctx, old)
	if err != nil {
		return nil, err
	}
	newRoot, err := t.root(ctx, new)
	if err != nil {
		return nil, err
	}
	return hashes, proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(old), uint64(new), hashes, oldRoot, newRoot)
}

// root folds the tiles of a size into its root.
func (t *tesseraLog) root(ctx context.Context, size int64) ([]byte, error) {
	nodes, err := client.FetchRangeNodes(ctx, uint64(size), t.fetcher.ReadTile)
	if err != nil {
		return nil, err
	}
	all, err := ranges.NewRange(0, uint64(size), nodes)
	if err != nil {
		return nil, err
	}
	return all.GetRootHash(nil)
}
