// Command adapter lets weave-conform ask this library what it makes of bytes, and what it sends. Questions and answers
// are lines of JSON, described in conformance/ADAPTER.md.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"weave.example/weave"
)

func main() {
	if err := answerAll(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "adapter:", err)
		os.Exit(1)
	}
}

// answerAll answers each line of questions with a line, written before the next question is read.
func answerAll(questions io.Reader, answers io.Writer) error {
	lines := bufio.NewReader(questions)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			reply, err := answer(line)
			if err != nil {
				return err
			}
			text, err := json.Marshal(reply)
			if err != nil {
				return err
			}
			if _, err := answers.Write(append(text, '\n')); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

type object map[string]any

// answer returns an error only for what is no question.
func answer(line []byte) (object, error) {
	var question struct{ Read, Write string }
	if err := json.Unmarshal(line, &question); err != nil {
		return nil, fmt.Errorf("this is no question: %w", err)
	}
	switch {
	case question.Read == "server" || question.Read == "client":
		return read(question.Read, line)
	case question.Write == "request":
		return writeRequest(line)
	case question.Write == "response-head":
		return writeResponseHead(line)
	case question.Write == "error":
		return writeError(line)
	default:
		return object{"unsupported": fmt.Sprintf("read %q, write %q", question.Read, question.Write)}, nil
	}
}

// read tells what a receiver makes of bytes.
func read(receiver string, line []byte) (object, error) {
	var question struct {
		Cut   int
		Bytes []struct {
			Hex   hexBytes
			Times *int
		}
	}
	if err := json.Unmarshal(line, &question); err != nil {
		return nil, err
	}
	if question.Cut < 1 {
		return nil, fmt.Errorf("cut is %d, must be at least 1", question.Cut)
	}
	var stream []byte
	for _, piece := range question.Bytes {
		times := 1
		if piece.Times != nil {
			times = *piece.Times
		}
		if times < 0 {
			return nil, fmt.Errorf("times is %d, must be at least 0", times)
		}
		stream = append(stream, bytes.Repeat(piece.Hex, times)...)
	}

	source := cutReader{bytes.NewReader(stream), question.Cut}
	next := nextOfClient(source)
	if receiver == "server" {
		next = nextOfServer(source)
	}
	frames := []object{}
	for {
		frame, end, err := next()
		if err != nil {
			return nil, err
		}
		if frame != nil {
			frames = append(frames, frame)
		}
		if end != "" {
			return object{"frames": frames, "end": end}, nil
		}
	}
}

// cutReader delivers at most cut bytes a call.
type cutReader struct {
	*bytes.Reader
	cut int
}

func (r cutReader) Read(p []byte) (int, error) {
	return r.Reader.Read(p[:min(len(p), r.cut)])
}

// next returns the outcome of the next frame, if there is one, and how the stream ends, if it does.
type next func() (frame object, end string, err error)

func nextOfServer(source io.Reader) next {
	requests := weave.NewRequestReader(source)
	return func() (object, string, error) {
		request, err := requests.Next()
		if err == nil {
			return object{"request": describeRequest(request)}, "", nil
		}
		refusal := new(weave.Error)
		if !errors.As(err, &refusal) {
			return endOfStream(err)
		}
		frame, err := refusal.AppendBinary(nil)
		end := ""
		if refusal.Code.Closes() {
			end = "closed"
		}
		field, _, _ := strings.Cut(refusal.Message, " ") // it begins with the field at fault
		return object{"answer": object{"hex": hexBytes(frame), "field": field}}, end, err
	}
}

func nextOfClient(source io.Reader) next {
	answers := weave.NewAnswerReader(source)
	return func() (object, string, error) {
		response, err := answers.Next()
		if err == nil {
			return object{"response": describeResponse(response)}, "", nil
		}
		if answer := new(weave.Error); errors.As(err, &answer) {
			return object{"error": describeError(answer)}, "", nil
		}
		if fault := new(weave.FieldError); errors.As(err, &fault) {
			return object{"close": object{"because": fault.Rule}}, "closed", nil
		}
		return endOfStream(err)
	}
}

func endOfStream(err error) (object, string, error) {
	switch err {
	case io.EOF:
		return nil, "between-frames", nil
	case io.ErrUnexpectedEOF:
		return nil, "inside-a-frame", nil
	default:
		return nil, "", err
	}
}

func describeRequest(r *weave.Request) object {
	described := object{
		"request_id": decimal(r.RequestID),
		"model_id":   weave.ModelSD35,
		"width":      r.Width,
		"height":     r.Height,
		"steps":      r.Steps,
		"cfg_scale":  fmt.Sprintf("%08X", math.Float32bits(r.CFGScale)),
		"seed":       decimal(r.Seed),
	}
	for i, name := range []string{weave.ClipL: "clip_l", weave.ClipG: "clip_g", weave.T5: "t5"} {
		prompt := r.Prompts[i]
		described[name] = object{"offset": prompt.Offset, "length": len(prompt.Text), "hex": hexBytes(prompt.Text)}
	}
	return described
}

func describeResponse(r *weave.Response) object {
	return object{
		"request_id":         decimal(r.RequestID),
		"status":             200, // nothing else is read as a response
		"generation_time_ms": r.GenerationTime.Milliseconds(),
		"image_width":        r.Width,
		"image_height":       r.Height,
		"channels":           r.Channels,
		"image_data_len":     len(r.Pixels),
		"crc32":              fmt.Sprintf("%08X", crc32.ChecksumIEEE(r.Pixels)),
		"trailing":           r.Trailing,
	}
}

func describeError(e *weave.Error) object {
	return object{
		"request_id": decimal(e.RequestID),
		"status":     e.Status,
		"error_code": e.Code,
		"hex":        hexBytes(e.Message),
		"shown":      hexBytes(e.Shown()),
		"trailing":   e.Trailing,
	}
}

func writeRequest(line []byte) (object, error) {
	var question struct {
		RequestID uint64 `json:"request_id,string"`
		Width     uint32
		Height    uint32
		Steps     uint32
		CFGScale  string   `json:"cfg_scale"`
		Seed      uint64   `json:",string"`
		ClipL     hexBytes `json:"clip_l"`
		ClipG     hexBytes `json:"clip_g"`
		T5        hexBytes
	}
	if refused, err := parseFields(line, &question); refused != nil || err != nil {
		return refused, err
	}
	scale, err := strconv.ParseUint(question.CFGScale, 16, 32)
	if err != nil {
		return nil, fmt.Errorf("cfg_scale: %w", err)
	}
	return written(&weave.Request{
		RequestID: question.RequestID,
		Width:     question.Width,
		Height:    question.Height,
		Steps:     question.Steps,
		CFGScale:  math.Float32frombits(uint32(scale)),
		Seed:      question.Seed,
		Prompts: [3]weave.Prompt{
			weave.ClipL: {Text: string(question.ClipL)},
			weave.ClipG: {Text: string(question.ClipG)},
			weave.T5:    {Text: string(question.T5)},
		},
	})
}

func writeResponseHead(line []byte) (object, error) {
	var question struct {
		RequestID      uint64 `json:"request_id,string"`
		GenerationTime uint32 `json:"generation_time_ms"`
		Width          uint32 `json:"image_width"`
		Height         uint32 `json:"image_height"`
		Channels       uint32
	}
	if refused, err := parseFields(line, &question); refused != nil || err != nil {
		return refused, err
	}
	return written(&weave.ResponseHead{
		RequestID:      question.RequestID,
		GenerationTime: time.Duration(question.GenerationTime) * time.Millisecond,
		Width:          question.Width,
		Height:         question.Height,
		Channels:       question.Channels,
	})
}

func writeError(line []byte) (object, error) {
	var question struct {
		RequestID uint64     `json:"request_id,string"`
		Code      weave.Code `json:"error_code"`
		Message   hexBytes   `json:"error_msg"`
	}
	if refused, err := parseFields(line, &question); refused != nil || err != nil {
		return refused, err
	}
	return written(&weave.Error{
		RequestID: question.RequestID,
		Code:      question.Code,
		Message:   string(question.Message),
	})
}

// parseFields refuses a number that its field can't hold, which Go's types keep from ever reaching the library.
func parseFields(line []byte, question any) (refused object, err error) {
	err = json.Unmarshal(line, question)
	if unfit := new(json.UnmarshalTypeError); errors.As(err, &unfit) {
		return object{"refused": unfit.Field}, nil
	}
	return nil, err
}

func written(message interface {
	AppendBinary([]byte) ([]byte, error)
}) (object, error) {
	frame, err := message.AppendBinary(nil)
	if fault := new(weave.FieldError); errors.As(err, &fault) {
		return object{"refused": fault.Field}, nil
	}
	return object{"hex": hexBytes(frame)}, err
}

func decimal(n uint64) string {
	return strconv.FormatUint(n, 10)
}

// hexBytes are hexadecimal digits in JSON.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, b), nil
}

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.AppendDecode(nil, text)
	return err
}
