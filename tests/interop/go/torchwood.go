package main

import (
	"context"
	"fmt"
	"os"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// torchwoodLog reads a log with torchwood's client.
type torchwoodLog struct {
	fetcher *torchwood.TileFetcher
	client  *torchwood.Client
	policy  torchwood.Policy
	tree    tlog.Tree
}

// policyOf trusts heads that a log has signed, with no witness; the text is that of a tlog-policy.
func policyOf(vkey string) (torchwood.Policy, error) {
	return torchwood.ParsePolicy([]byte("log " + vkey + "\nquorum none\n"))
}

func newTorchwood(url, vkey string) (*torchwoodLog, error) {
	policy, err := policyOf(vkey)
	if err != nil {
		return nil, err
	}
	fetcher, err := torchwood.NewTileFetcher(url, torchwood.WithConcurrencyLimit(8))
	if err != nil {
		return nil, err
	}
	client, err := torchwood.NewClient(fetcher)
	return &torchwoodLog{fetcher: fetcher, client: client, policy: policy}, err
}

func (t *torchwoodLog) open(ctx context.Context) (head, error) {
	data, err := t.fetcher.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		return head{}, err
	}
	checkpoint, _, err := torchwood.VerifyCheckpoint(data, t.policy)
	if err != nil {
		return head{}, err
	}
	if checkpoint.Extension != "" {
		return head{}, fmt.Errorf("extension lines: %q", checkpoint.Extension)
	}
	t.tree = checkpoint.Tree
	return head{checkpoint.Origin, checkpoint.N, checkpoint.Hash[:]}, nil
}

func (t *torchwoodLog) entries(ctx context.Context, yield func(int64, []byte) error) error {
	for index, entry := range t.client.AllEntries(ctx, t.tree, 0) {
		if err := yield(index, entry); err != nil {
			return err
		}
	}
	return t.client.Err()
}

func (t *torchwoodLog) inclusion(ctx context.Context, index, size int64) ([][]byte, error) {
	hashes := torchwood.TileHashReaderWithContext(ctx, t.tree, t.fetcher)
	root, err := tlog.TreeHash(size, hashes)
	if err != nil {
		return nil, err
	}
	// Entry trusts the tree that it is given, so its root comes from tiles that were verified against the head.
	_, proof, err := t.client.Entry(ctx, tlog.Tree{N: size, Hash: root}, index)
	return raw(proof), err
}

func (t *torchwoodLog) consistency(ctx context.Context, old, new int64) ([][]byte, error) {
	proof, err := tlog.ProveTree(new, old, torchwood.TileHashReaderWithContext(ctx, t.tree, t.fetcher))
	return raw(proof), err
}

// verify checks a .tlog-proof file of an entry, offline.
func verify(vkey, entryPath, proofPath string) error {
	policy, err := policyOf(vkey)
	if err != nil {
		return err
	}
	entry, err := os.ReadFile(entryPath)
	if err != nil {
		return err
	}
	proof, err := os.ReadFile(proofPath)
	if err != nil {
		return err
	}
	return torchwood.VerifyProof(policy, tlog.RecordHash(entry), proof)
}
