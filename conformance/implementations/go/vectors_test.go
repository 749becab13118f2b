package weave_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"weave.example/weave"
)

// The members of a vector that matter here; spec/vectors/README.md describes them.
type vector struct {
	Name     string
	Receiver string
	Bytes    []blob
	Sender   string
	Expect   struct {
		Frames []outcome
		End    string
	}
}

type blob struct {
	Hex   string
	Text  string
	Times int
}

type outcome struct {
	Request  *request  `json:",omitempty"`
	Answer   *answer   `json:",omitempty"`
	Response *response `json:",omitempty"`
	Error    *answer   `json:",omitempty"`
	Close    *broken   `json:",omitempty"`
}

type request struct {
	RequestID uint64 `json:"request_id,string"`
	Width     uint32
	Height    uint32
	Steps     uint32
	CFGScale  struct{ Bits string } `json:"cfg_scale"`
	Seed      uint64                `json:",string"`
	ClipL     prompt                `json:"clip_l"`
	ClipG     prompt                `json:"clip_g"`
	T5        prompt
}

type prompt struct {
	blob
	Offset uint32
	Length uint32
}

type answer struct {
	RequestID  uint64 `json:"request_id,string"`
	Status     uint32
	Code       uint32 `json:"error_code"`
	Name       string
	Field      string
	MessageLen int  `json:"error_msg_len"`
	Message    blob `json:"error_msg"`
	Trailing   uint32
}

type response struct {
	RequestID      uint64 `json:"request_id,string"`
	GenerationTime int64  `json:"generation_time_ms"`
	Width          uint32 `json:"image_width"`
	Height         uint32 `json:"image_height"`
	Channels       uint32
	Pixels         blob `json:"image_data"`
	Trailing       uint32
}

type broken struct {
	Because string
	Field   string
}

func (b blob) bytes(t *testing.T) []byte {
	piece := []byte(b.Text)
	if b.Hex != "" {
		var err error
		if piece, err = hex.DecodeString(strings.ReplaceAll(b.Hex, " ", "")); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.Repeat(piece, max(b.Times, 1))
}

func (v *vector) stream(t *testing.T) []byte {
	var stream []byte
	for _, piece := range v.Bytes {
		stream = append(stream, piece.bytes(t)...)
	}
	return stream
}

// eachVector gives every vector of spec/vectors to check, as a test of its own.
func eachVector(t *testing.T, check func(*testing.T, *vector)) {
	files, err := filepath.Glob("../../../spec/vectors/*.json")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, file := range files {
		if filepath.Base(file) == "schema.json" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var content struct{ Vectors []*vector }
		if err := json.Unmarshal(text, &content); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, v := range content.Vectors {
			t.Run(v.Name, func(t *testing.T) { check(t, v) })
		}
		count += len(content.Vectors)
	}
	if count < 450 {
		t.Errorf("%d vectors were found in spec/vectors, there were 450 once", count)
	}
}

// cutReader delivers at most cut bytes a call.
type cutReader struct {
	io.Reader
	cut int
}

func (r cutReader) Read(p []byte) (int, error) {
	return r.Reader.Read(p[:min(len(p), r.cut)])
}

func TestVectorsAreRead(t *testing.T) {
	eachVector(t, func(t *testing.T, v *vector) {
		stream := v.stream(t)
		for _, cut := range []int{len(stream) + 1, 1, 7} {
			source := cutReader{bytes.NewReader(stream), cut}
			var end string
			if v.Receiver == "server" {
				end = checkServer(t, source, v.Expect.Frames)
			} else {
				end = checkClient(t, source, v.Expect.Frames)
			}
			if end != v.Expect.End {
				t.Errorf("cut %d: the end is %s, expected %s", cut, end, v.Expect.End)
			}
		}
	})
}

func checkServer(t *testing.T, source io.Reader, frames []outcome) (end string) {
	reader := weave.NewRequestReader(source)
	for {
		got, err := reader.Next()
		var refusal *weave.Error
		switch {
		case err == io.EOF:
			return unmet(t, frames, "between-frames")
		case err == io.ErrUnexpectedEOF:
			return unmet(t, frames, "inside-a-frame")
		case len(frames) == 0:
			t.Fatalf("an outcome too many: %+v, %v", got, err)
		case err == nil:
			checkRequest(t, got, frames[0].Request)
		case errors.As(err, &refusal):
			checkRefusal(t, refusal, frames[0].Answer)
			if refusal.Code.Closes() {
				return unmet(t, frames[1:], "closed")
			}
		default:
			t.Fatal(err)
		}
		frames = frames[1:]
	}
}

func checkClient(t *testing.T, source io.Reader, frames []outcome) (end string) {
	reader := weave.NewAnswerReader(source)
	for {
		got, err := reader.Next()
		var answer *weave.Error
		var fault *weave.FieldError
		switch {
		case err == io.EOF:
			return unmet(t, frames, "between-frames")
		case err == io.ErrUnexpectedEOF:
			return unmet(t, frames, "inside-a-frame")
		case len(frames) == 0:
			t.Fatalf("an outcome too many: %v", err)
		case err == nil:
			checkResponse(t, got, frames[0].Response)
		case errors.As(err, &answer):
			checkError(t, answer, frames[0].Error)
		case errors.As(err, &fault):
			expected := frames[0].Close
			if expected == nil || fault.Rule != expected.Because || fault.Field != expected.Field {
				t.Errorf("closed because %v, expected %+v", fault, expected)
			}
			return unmet(t, frames[1:], "closed")
		default:
			t.Fatal(err)
		}
		frames = frames[1:]
	}
}

func unmet(t *testing.T, frames []outcome, end string) string {
	if len(frames) > 0 {
		t.Errorf("%d outcomes are missing", len(frames))
	}
	return end
}

func checkRequest(t *testing.T, got *weave.Request, expected *request) {
	t.Helper()
	if expected == nil {
		t.Fatalf("a request can be served that must be refused: %+v", got)
	}
	want := &weave.Request{
		RequestID: expected.RequestID,
		Width:     expected.Width,
		Height:    expected.Height,
		Steps:     expected.Steps,
		CFGScale:  expected.cfgScale(t),
		Seed:      expected.Seed,
	}
	for i, p := range expected.prompts() {
		want.Prompts[i] = weave.Prompt{Text: string(p.bytes(t)), Offset: p.Offset}
		if len(got.Prompts[i].Text) != int(p.Length) {
			t.Errorf("prompt %d has %d bytes, expected %d", i, len(got.Prompts[i].Text), p.Length)
		}
	}
	if *got != *want || math.Signbit(float64(got.CFGScale)) {
		t.Errorf("got %+v, expected %+v", got, want)
	}
}

func (r *request) prompts() [3]prompt {
	return [3]prompt{weave.ClipL: r.ClipL, weave.ClipG: r.ClipG, weave.T5: r.T5}
}

func (r *request) cfgScale(t *testing.T) float32 {
	bits, err := strconv.ParseUint(r.CFGScale.Bits, 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	return math.Float32frombits(uint32(bits))
}

func checkRefusal(t *testing.T, got *weave.Error, expected *answer) {
	t.Helper()
	if expected == nil {
		t.Fatalf("refused: %v", got)
	}
	if got.RequestID != expected.RequestID || got.Status != expected.Status ||
		uint32(got.Code) != expected.Code || got.Code.String() != expected.Name {
		t.Errorf("got %+v, expected %+v", got, expected)
	}
	if !strings.HasPrefix(got.Message, expected.Field+" is ") || len(got.Message) > weave.MaxErrorMessage {
		t.Errorf("the message is to name %s first: %s", expected.Field, got.Message)
	}
	frame, err := got.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = weave.NewAnswerReader(bytes.NewReader(frame)).Next()
	if read := new(weave.Error); !errors.As(err, &read) || *read != *got {
		t.Errorf("%+v is read as %+v", got, err)
	}
}

func checkError(t *testing.T, got *weave.Error, expected *answer) {
	t.Helper()
	if expected == nil {
		t.Fatalf("an error was read that breaks the protocol: %+v", got)
	}
	want := weave.Error{
		RequestID: expected.RequestID,
		Status:    expected.Status,
		Code:      weave.Code(expected.Code),
		Message:   string(expected.Message.bytes(t)),
		Trailing:  expected.Trailing,
	}
	if *got != want || len(got.Message) != expected.MessageLen {
		t.Errorf("got %+v, expected %+v", got, want)
	}
	if expected.Name != "" && got.Code.String() != expected.Name {
		t.Errorf("%v is the name of %s", got.Code, expected.Name)
	}
}

func checkResponse(t *testing.T, got *weave.Response, expected *response) {
	t.Helper()
	if expected == nil {
		t.Fatalf("a response was read that breaks the protocol: %+v", got.ResponseHead)
	}
	if want := expected.head(); got.ResponseHead != want {
		t.Errorf("got %+v, expected %+v", got.ResponseHead, want)
	}
	if !bytes.Equal(got.Pixels, expected.Pixels.bytes(t)) {
		t.Error("the pixels differ")
	}
	if got.Trailing != expected.Trailing {
		t.Errorf("%d bytes are trailing, expected %d", got.Trailing, expected.Trailing)
	}
}

func (r *response) head() weave.ResponseHead {
	return weave.ResponseHead{
		RequestID:      r.RequestID,
		GenerationTime: time.Duration(r.GenerationTime) * time.Millisecond,
		Width:          r.Width,
		Height:         r.Height,
		Channels:       r.Channels,
	}
}

// TestVectorsAreWritten gives what was accepted to the writer, and compares what it makes with the vector's bytes.
func TestVectorsAreWritten(t *testing.T) {
	written := 0
	eachVector(t, func(t *testing.T, v *vector) {
		stream := v.stream(t)
		if v.Sender != "" || v.Expect.End != "between-frames" || len(stream) == 0 {
			return // what no sender makes, and streams that end badly
		}
		var made []byte
		for _, frame := range v.Expect.Frames {
			var err error
			switch {
			case frame.Request != nil:
				made, err = appendRequest(t, made, frame.Request)
			case frame.Response != nil:
				head := frame.Response.head()
				made, err = head.AppendBinary(made)
				made = append(made, frame.Response.Pixels.bytes(t)...)
			case frame.Error != nil:
				e := weave.Error{
					RequestID: frame.Error.RequestID,
					Code:      weave.Code(frame.Error.Code),
					Message:   string(frame.Error.Message.bytes(t)),
				}
				if e.Code.Status() == 0 {
					return // a code of a later version
				}
				made, err = e.AppendBinary(made)
			default:
				return // no sender of this package makes what is refused
			}
			if errors.Is(err, errOtherLayout) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if len(made) != len(stream) && strings.HasPrefix(v.Name, "ranges-") {
			return // prompt_data has bytes that no range covers
		}
		if !bytes.Equal(made, stream) {
			t.Error("the writer makes other bytes")
		}
		written++
	})
	if written < 104 {
		t.Errorf("%d vectors were written, there were 104 once", written)
	}
}

var errOtherLayout = errors.New("the prompts don't follow each other")

func appendRequest(t *testing.T, b []byte, r *request) ([]byte, error) {
	made := weave.Request{
		RequestID: r.RequestID,
		Width:     r.Width,
		Height:    r.Height,
		Steps:     r.Steps,
		CFGScale:  r.cfgScale(t),
		Seed:      r.Seed,
	}
	next := uint32(0)
	for i, p := range r.prompts() {
		if p.Offset != next {
			return b, fmt.Errorf("%w: %d", errOtherLayout, i)
		}
		next += p.Length
		made.Prompts[i].Text = string(p.bytes(t))
	}
	return made.AppendBinary(b)
}
