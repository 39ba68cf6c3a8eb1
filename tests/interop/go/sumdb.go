package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// sumDB reads a log with the packages that the Go command verifies its checksum database with. They know another layout
// of paths and no bundles, so fetching is done here, with nothing but net/http.
type sumDB struct {
	url    string
	known  note.Verifier
	tree   tlog.Tree
	hashes tlog.HashReader
}

func newSumDB(url, vkey string) (*sumDB, error) {
	known, err := note.NewVerifier(vkey)
	return &sumDB{url: strings.TrimSuffix(url, "/"), known: known}, err
}

func (s *sumDB) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, response.Status)
	}
	return io.ReadAll(response.Body)
}

func (s *sumDB) open(ctx context.Context) (head, error) {
	data, err := s.get(ctx, "checkpoint")
	if err != nil {
		return head{}, err
	}
	signed, err := note.Open(data, note.VerifierList(s.known))
	if err != nil {
		return head{}, err
	}
	// tlog.ParseTree takes the checksum database's own origin alone; the two lines below it are the same.
	origin, rest, _ := strings.Cut(signed.Text, "\n")
	s.tree, err = tlog.ParseTree([]byte("go.sum database tree\n" + rest))
	if err != nil {
		return head{}, err
	}
	s.hashes = tlog.TileHashReader(s.tree, &tiles{ctx: ctx, log: s})
	return head{origin, s.tree.N, s.tree.Hash[:]}, nil
}

func (s *sumDB) entries(ctx context.Context, yield func(int64, []byte) error) error {
	for first := int64(0); first < s.tree.N; first += 256 {
		width := min(256, s.tree.N-first)
		tile := tlog.Tile{H: 8, L: -1, N: first / 256, W: int(width)}
		data, err := s.get(ctx, "tile/entries/"+strings.TrimPrefix(tile.Path(), "tile/8/data/"))
		if err != nil {
			return err
		}
		indexes := make([]int64, width)
		for i := range indexes {
			indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
		}
		leaves, err := s.hashes.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for i, leaf := range leaves {
			length := int(binary.BigEndian.Uint16(data))
			entry := data[2 : 2+length]
			data = data[2+length:]
			if tlog.RecordHash(entry) != leaf {
				return fmt.Errorf("entry %d has another hash than its leaf", first+int64(i))
			}
			if err := yield(first+int64(i), entry); err != nil {
				return err
			}
		}
		if len(data) > 0 {
			return fmt.Errorf("%d bytes too many in %s", len(data), tile.Path())
		}
	}
	return nil
}

func (s *sumDB) inclusion(_ context.Context, index, size int64) ([][]byte, error) {
	root, err := tlog.TreeHash(size, s.hashes)
	if err != nil {
		return nil, err
	}
	leaf, err := s.hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	if err != nil {
		return nil, err
	}
	proof, err := tlog.ProveRecord(size, index, s.hashes)
	if err != nil {
		return nil, err
	}
	return raw(proof), tlog.CheckRecord(proof, size, root, index, leaf[0])
}

func (s *sumDB) consistency(_ context.Context, old, new int64) ([][]byte, error) {
	oldRoot, err := tlog.TreeHash(old, s.hashes)
	if err != nil {
		return nil, err
	}
	newRoot, err := tlog.TreeHash(new, s.hashes)
	if err != nil {
		return nil, err
	}
	proof, err := tlog.ProveTree(new, old, s.hashes)
	if err != nil {
		return nil, err
	}
	return raw(proof), tlog.CheckTree(proof, new, newRoot, old, oldRoot)
}

// tiles fetches the tiles that tlog asks for, and verifies with it, each once.
type tiles struct {
	ctx   context.Context
	log   *sumDB
	saved map[tlog.Tile][]byte
}

func (t *tiles) Height() int { return 8 }

func (t *tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, len(wanted))
	for i, tile := range wanted {
		data, ok := t.saved[tile]
		if !ok {
			var err error
			data, err = t.log.get(t.ctx, "tile/"+strings.TrimPrefix(tile.Path(), "tile/8/"))
			if err != nil {
				return nil, err
			}
		}
		found[i] = data
	}
	return found, nil
}

func (t *tiles) SaveTiles(verified []tlog.Tile, data [][]byte) {
	if t.saved == nil {
		t.saved = map[tlog.Tile][]byte{}
	}
	for i, tile := range verified {
		t.saved[tile] = data[i]
	}
}

func raw(hashes []tlog.Hash) [][]byte {
	list := make([][]byte, len(hashes))
	for i := range hashes {
		list[i] = hashes[i][:]
	}
	return list
}
