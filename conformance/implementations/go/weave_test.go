package weave_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"weave.example/weave"
)

func goodRequest() *weave.Request {
	return &weave.Request{
		RequestID: 7, Width: 64, Height: 128, Steps: 4, CFGScale: 1.5, Seed: 9,
		Prompts: weave.SamePrompt("a cat"),
	}
}

func frameOf(t *testing.T, message interface {
	AppendBinary([]byte) ([]byte, error)
}) []byte {
	t.Helper()
	frame, err := message.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func TestRequestIsRefusedByItsSender(t *testing.T) {
	for _, test := range []struct {
		field string
		spoil func(*weave.Request)
	}{
		{"width", func(r *weave.Request) { r.Width = 0 }},
		{"width", func(r *weave.Request) { r.Width = 65 }},
		{"width", func(r *weave.Request) { r.Width = 2112 }},
		{"height", func(r *weave.Request) { r.Height = 32 }},
		{"steps", func(r *weave.Request) { r.Steps = 0 }},
		{"steps", func(r *weave.Request) { r.Steps = 101 }},
		{"cfg_scale", func(r *weave.Request) { r.CFGScale = -0.1 }},
		{"cfg_scale", func(r *weave.Request) { r.CFGScale = math.Nextafter32(20, 21) }},
		{"cfg_scale", func(r *weave.Request) { r.CFGScale = float32(math.NaN()) }},
		{"cfg_scale", func(r *weave.Request) { r.CFGScale = float32(math.Inf(1)) }},
		{"clip_l_length", func(r *weave.Request) { r.Prompts[weave.ClipL].Text = "" }},
		{"clip_g_length", func(r *weave.Request) { r.Prompts[weave.ClipG].Text = strings.Repeat("x", 2049) }},
		{"t5", func(r *weave.Request) { r.Prompts[weave.T5].Text = "secret\xFF" }},
		{"clip_g", func(r *weave.Request) { r.Prompts[weave.ClipG].Text = "sec\x00ret" }},
	} {
		r := goodRequest()
		test.spoil(r)
		frame, err := r.AppendBinary([]byte("before"))
		var fault *weave.FieldError
		if !errors.As(err, &fault) || fault.Field != test.field {
			t.Errorf("the sender says %v, expected %s to be refused", err, test.field)
		}
		if err != nil && strings.Contains(err.Error(), "sec") {
			t.Errorf("the message shows a prompt: %v", err)
		}
		if string(frame) != "before" {
			t.Errorf("%s: something was appended: %q", test.field, frame)
		}
	}
}

func TestRequestComesAsItWasSent(t *testing.T) {
	for _, r := range []*weave.Request{
		goodRequest(),
		{Width: 2048, Height: 2048, Steps: 100, CFGScale: 20, RequestID: math.MaxUint64, Seed: math.MaxUint64,
			Prompts: weave.SamePrompt(strings.Repeat("\U0001F408", 512))},
	} {
		frame := frameOf(t, r)
		got, err := weave.NewRequestReader(bytes.NewReader(frame)).Next()
		if err != nil {
			t.Fatal(err)
		}
		want := *r
		for i := range want.Prompts {
			want.Prompts[i].Offset = uint32(i * len(want.Prompts[0].Text))
		}
		if *got != want {
			t.Errorf("got %+v, expected %+v", got, want)
		}
	}
}

func TestMinusZeroIsSentAsZero(t *testing.T) {
	minus, plus := goodRequest(), goodRequest()
	minus.CFGScale, plus.CFGScale = float32(math.Copysign(0, -1)), 0
	if !bytes.Equal(frameOf(t, minus), frameOf(t, plus)) {
		t.Error("the sign of -0.0 was sent")
	}
}

func TestResponseHeadIsRefusedByItsSender(t *testing.T) {
	for field, head := range map[string]weave.ResponseHead{
		"image_width":  {Width: 100, Height: 64, Channels: 3},
		"image_height": {Width: 64, Height: 1 << 31, Channels: 3},
		"channels":     {Width: 64, Height: 64, Channels: 1},
	} {
		_, err := head.AppendBinary(nil)
		var fault *weave.FieldError
		if !errors.As(err, &fault) || fault.Field != field {
			t.Errorf("the sender says %v, expected %s to be refused", err, field)
		}
	}
}

func TestGenerationTimeStaysWithin32Bits(t *testing.T) {
	const largest = time.Duration(math.MaxUint32) * time.Millisecond
	for took, want := range map[time.Duration]time.Duration{
		-time.Second:               0,
		1999 * time.Microsecond:    time.Millisecond,
		largest:                    largest,
		largest + time.Millisecond: largest,
		math.MaxInt64:              largest,
	} {
		head := weave.ResponseHead{GenerationTime: took, Width: 64, Height: 64, Channels: 3}
		frame := append(frameOf(t, &head), make([]byte, head.ImageLen())...)
		got, err := weave.NewAnswerReader(bytes.NewReader(frame)).Next()
		if err != nil {
			t.Fatal(err)
		}
		if got.GenerationTime != want {
			t.Errorf("%v came as %v, expected %v", took, got.GenerationTime, want)
		}
	}
}

func TestMessageIsCutBetweenCharacters(t *testing.T) {
	for message, want := range map[string]string{
		strings.Repeat("x", 255):          strings.Repeat("x", 255),
		strings.Repeat("x", 256):          strings.Repeat("x", 255),
		strings.Repeat("x", 254) + "é":    strings.Repeat("x", 254),
		strings.Repeat("\U0001F408", 100): strings.Repeat("\U0001F408", 63),
		"not \xFF UTF-8":                  "not \uFFFD UTF-8",
	} {
		_, err := weave.NewAnswerReader(bytes.NewReader(frameOf(t, &weave.Error{Code: weave.CodeBusy, Message: message}))).Next()
		var got *weave.Error
		if !errors.As(err, &got) || got.Message != want || got.Status != 500 {
			t.Errorf("%q came as %+v", message, err)
		}
	}
}

func TestUnknownCodeIsNotSent(t *testing.T) {
	for _, code := range []weave.Code{0, 11, 25, 98, math.MaxUint32} {
		_, err := (&weave.Error{Code: code, Status: 400}).AppendBinary(nil)
		var fault *weave.FieldError
		if !errors.As(err, &fault) || fault.Field != "error_code" {
			t.Errorf("code %d: the sender says %v", code, err)
		}
	}
}

func TestMessageIsShownFitForATerminal(t *testing.T) {
	for message, want := range map[string]string{
		"größer als erlaubt: 猫 🐈": "größer als erlaubt: 猫 🐈",
		"\x1b[2J\a\r\n\t\x00\x7f": `\x1b[2J\a\r\n\t\x00\x7f`,
		"\u009b2J":                `\u009b2J`,
		"\xFF\xC3":                "\uFFFD\uFFFD",
		"a\u202Eb\u2028c\uFEFF":   `a\u202eb\u2028c\ufeff`, // turns the text around, breaks the line, is not seen
	} {
		got := (&weave.Error{Message: message}).Shown()
		if got != want || !utf8.ValidString(got) {
			t.Errorf("%q is shown as %q, expected %q", message, got, want)
		}
	}
}

func TestWrongMagicIsToldAtItsFirstByte(t *testing.T) {
	stream, peer := io.Pipe() // which stays open: to wait for 16 bytes would be in vain
	defer peer.Close()
	time.AfterFunc(20*time.Second, func() { peer.Close() })
	go peer.Write([]byte("WEX"))
	_, err := weave.NewRequestReader(stream).Next()
	var answer *weave.Error
	if !errors.As(err, &answer) || answer.Code != weave.CodeInvalidMagic {
		t.Errorf("the server says %v", err)
	}
}

func TestNothingIsReadAfterTheEnd(t *testing.T) {
	good := frameOf(t, goodRequest())
	source := bytes.NewReader(append([]byte("GET / HTTP/1.1\r\n"), good...))
	requests := weave.NewRequestReader(source)
	_, first := requests.Next()
	left := source.Len()
	if _, again := requests.Next(); again != first || source.Len() != left {
		t.Errorf("the server first says %v, then %v", first, again)
	}

	source = bytes.NewReader(append([]byte("HTTP/1.1 400 \r\n\r"), frameOf(t, &weave.Error{Code: weave.CodeBusy})...))
	answers := weave.NewAnswerReader(source)
	_, first = answers.Next()
	left = source.Len()
	if _, again := answers.Next(); again != first || source.Len() != left {
		t.Errorf("the client first says %v, then %v", first, again)
	}
}

func TestNothingIsReadOfTheNextFrame(t *testing.T) {
	source := bytes.NewReader(append(frameOf(t, goodRequest()), "next"...))
	if _, err := weave.NewRequestReader(source).Next(); err != nil {
		t.Fatal(err)
	}
	if source.Len() != len("next") {
		t.Errorf("%d bytes are left, expected those of the next frame", source.Len())
	}
}

func TestErrorsOfTheSourceArePassedOn(t *testing.T) {
	head := weave.ResponseHead{Width: 64, Height: 64, Channels: 3}
	for name, stream := range map[string][]byte{
		"a request":  frameOf(t, goodRequest()),
		"a response": append(frameOf(t, &head), make([]byte, head.ImageLen())...),
		"an error":   frameOf(t, &weave.Error{Code: weave.CodeBusy, Message: "later"}),
	} {
		for end := 0; end < len(stream); end += 1 + end/100 {
			fails := io.MultiReader(bytes.NewReader(stream[:end]), iotest.ErrReader(iotest.ErrTimeout))
			var err error
			if name == "a request" {
				_, err = weave.NewRequestReader(fails).Next()
			} else {
				_, err = weave.NewAnswerReader(fails).Next()
			}
			if err != iotest.ErrTimeout {
				t.Errorf("%s that fails after %d bytes: %v", name, end, err)
			}
		}
	}
}

// TestMemoryIsBounded reads frames that announce much: what a reader reserves for them must not depend on that.
func TestMemoryIsBounded(t *testing.T) {
	oversized := frameOf(t, goodRequest())
	copy(oversized[8:], "\x00\xA0\x00\x00") // payload_len 10,485,760
	oversized = append(oversized, make([]byte, weave.HeaderLen+weave.MaxSkippedPayload-len(oversized))...)
	announced := []byte("WEVE\x00\x01\x00\x02\xFF\xFF\xFF\xFF\x00\x00\x00\x00")
	contradicts := append([]byte("WEVE\x00\x01\x00\x02\x01\x00\x00\x20\x00\x00\x00\x00"), make([]byte, 32)...)

	for name, read := range map[string]func() error{
		"a server skips": func() error {
			_, err := weave.NewRequestReader(bytes.NewReader(oversized)).Next()
			return err
		},
		"a client closes for payload_len": func() error {
			_, err := weave.NewAnswerReader(bytes.NewReader(announced)).Next()
			return err
		},
		"a client closes for the head": func() error {
			_, err := weave.NewAnswerReader(bytes.NewReader(contradicts)).Next()
			return err
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: the frame was accepted", name)
		}
		if reserved := after.TotalAlloc - before.TotalAlloc; reserved > 64<<10 {
			t.Errorf("%s: %d bytes were reserved", name, reserved)
		}
	}
}

func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:7000":         "tcp 127.0.0.1:7000",
		"localhost:0":            "tcp localhost:0",
		"[::1]:7000":             "tcp [::1]:7000",
		"/run/weave/weave.sock":  "unix /run/weave/weave.sock",
		"weave.sock":             "unix weave.sock",
		"./a:1":                  "unix ./a:1",
		"a:70000":                "unix a:70000",
		"a:b":                    "unix a:b",
		"@abstract":              "unix ./@abstract",
		"":                       "refused",
		":7000":                  "refused",
		strings.Repeat("x", 108): "refused",
	} {
		network, resolved, err := weave.Network(address)
		got := network + " " + resolved
		if err != nil {
			got = "refused"
		}
		if got != want {
			t.Errorf("%q means %s, expected %s", address, got, want)
		}
	}
}
