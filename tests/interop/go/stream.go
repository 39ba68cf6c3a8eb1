package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"

	"filippo.io/torchwood"
)

// follow reads the server-sent events of a log until a head of a size has come, and prints the size of each head.
//
// Each event must be a checkpoint that is signed and larger than the one before; its ID is its size.
func follow(ctx context.Context, url, vkey string, size int64) error {
	policy, err := policyOf(vkey)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/v1/checkpoints/stream", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	kind := response.Header.Get("Content-Type")
	if response.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "text/event-stream") {
		return fmt.Errorf("%s, %s", response.Status, kind)
	}
	sizes := []int64{}
	for lines := bufio.NewScanner(response.Body); ; {
		event, err := nextEvent(lines)
		if err != nil {
			return err
		}
		checkpoint, _, err := torchwood.VerifyCheckpoint([]byte(event.data), policy)
		if err != nil {
			return err
		}
		if event.name != "checkpoint" || event.id != fmt.Sprint(checkpoint.N) {
			return fmt.Errorf("event %q with ID %q for a head of size %d", event.name, event.id, checkpoint.N)
		}
		if len(sizes) > 0 && checkpoint.N <= sizes[len(sizes)-1] {
			return fmt.Errorf("a head of size %d after %v", checkpoint.N, sizes)
		}
		sizes = append(sizes, checkpoint.N)
		if checkpoint.N >= size {
			return print(sizes)
		}
	}
}

// An event is one of server-sent events.
type event struct{ name, id, data string }

// nextEvent reads lines up to the end of the next event that has data, as the HTML standard says, §9.2.6.
func nextEvent(lines *bufio.Scanner) (event, error) {
	var found event
	var data []string
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case lines.Text() == "" && data != nil:
			found.data = strings.Join(data, "\n")
			return found, nil
		case field == "event":
			found.name = value
		case field == "id":
			found.id = value
		case field == "data":
			data = append(data, value)
		}
	}
	if err := lines.Err(); err != nil {
		return event{}, err
	}
	return event{}, fmt.Errorf("the stream has ended")
}
