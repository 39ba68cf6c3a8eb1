package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"filippo.io/torchwood"
	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// write makes a log of its own, for Treehead's core to read:
//
//	vkey, skey                   as note.GenerateKey writes them
//	checkpoint                   the head, made by transparency-dev/formats and signed with note.Sign
//	cosigned                     the same text, with a second line by a witness, as torchwood cosigns
//	extended                     the same head with an extension line
//	old                          the head at half the size, rounded up
//	tile/...                     all tiles and bundles of the head
//	<index>.entry, .tlog-proof   every entry with its proof, from torchwood; odd ones with extra data
//	consistency                  the proof from the old head to the new one: a list of base64
func write(folder, origin string, size int64) error {
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return err
	}
	w := &writer{folder: folder, origin: origin}
	w.signer, err = note.NewSigner(skey)
	if err != nil {
		return err
	}
	w.save("skey", []byte(skey))
	w.save("vkey", []byte(vkey))
	w.append(size)
	head := w.head(size, "")
	w.save("checkpoint", head)
	w.save("extended", w.head(size, "an extension\n"))
	w.save("old", w.head(w.half(), ""))
	w.tiles(size)
	w.proofs(size, head)
	w.cosign(skey, head)
	return w.err
}

// A writer writes files until one fails.
type writer struct {
	folder  string
	origin  string
	signer  note.Signer
	entries [][]byte
	stored  []tlog.Hash
	err     error
}

// ReadHashes implements tlog.HashReader over all hashes in memory.
func (w *writer) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		found[i] = w.stored[index]
	}
	return found, nil
}

func (w *writer) failed(err error) bool {
	if w.err == nil {
		w.err = err
	}
	return w.err != nil
}

func (w *writer) half() int64 { return int64(len(w.entries)+1) / 2 }

func (w *writer) save(name string, data []byte) {
	path := filepath.Join(w.folder, name)
	if w.failed(os.MkdirAll(filepath.Dir(path), 0o755)) {
		return
	}
	w.failed(os.WriteFile(path, data, 0o600))
}

func (w *writer) append(size int64) {
	for index := range size {
		entry := fmt.Appendf(nil, "entry %d", index)
		hashes, err := tlog.StoredHashes(index, entry, w)
		if w.failed(err) {
			return
		}
		w.entries, w.stored = append(w.entries, entry), append(w.stored, hashes...)
	}
}

func (w *writer) head(size int64, extension string) []byte {
	root, err := tlog.TreeHash(size, w)
	if w.failed(err) {
		return nil
	}
	text := log.Checkpoint{Origin: w.origin, Size: uint64(size), Hash: root[:]}.Marshal()
	signed, err := note.Sign(&note.Note{Text: string(text) + extension}, w.signer)
	w.failed(err)
	return signed
}

func (w *writer) tiles(size int64) {
	for _, tile := range tlog.NewTiles(8, 0, size) {
		data, err := tlog.ReadTileData(tile, w)
		if w.failed(err) {
			return
		}
		w.save(torchwood.TilePath(tile), data)
		if tile.L == 0 {
			w.bundle(tile)
		}
	}
}

func (w *writer) bundle(tile tlog.Tile) {
	var data []byte
	var err error
	first := tile.N * torchwood.TileWidth
	for _, entry := range w.entries[first : first+int64(tile.W)] {
		data, err = torchwood.AppendTileEntry(data, entry)
		if w.failed(err) {
			return
		}
	}
	tile.L = -1
	w.save(torchwood.TilePath(tile), data)
}

func (w *writer) proofs(size int64, head []byte) {
	for index, entry := range w.entries {
		proof, err := tlog.ProveRecord(size, int64(index), w)
		if w.failed(err) {
			return
		}
		file := torchwood.FormatProof(int64(index), proof, head)
		if index%2 == 1 {
			file = torchwood.FormatProofWithExtraData(int64(index), []byte{0, 255, byte(index)}, proof, head)
		}
		w.save(fmt.Sprintf("%d.entry", index), entry)
		w.save(fmt.Sprintf("%d.tlog-proof", index), file)
	}
	proof, err := tlog.ProveTree(size, w.half(), w)
	if w.failed(err) {
		return
	}
	text, err := json.Marshal(raw(proof))
	w.failed(err)
	w.save("consistency", text)
}

func (w *writer) cosign(skey string, head []byte) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if w.failed(err) {
		return
	}
	witness, err := torchwood.NewCosignatureSigner("witness.example/w", key)
	if w.failed(err) {
		return
	}
	own, err := torchwood.NewVerifierFromSigner(skey)
	if w.failed(err) {
		return
	}
	signed, err := note.Open(head, note.VerifierList(own))
	if w.failed(err) {
		return
	}
	cosigned, err := note.Sign(signed, witness)
	w.failed(err)
	w.save("cosigned", cosigned)
}
