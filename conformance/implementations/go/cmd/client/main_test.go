package main

import (
	"bytes"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weave.example/weave"
)

// serve listens on a Unix socket, gives its only connection to server, and returns the socket's path.
func serve(t *testing.T, server func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return // the client never came
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second)) // a client that never gives up fails the test then
		server(conn)
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return path
}

// requestsOf reads n requests.
func requestsOf(t *testing.T, conn net.Conn, n int) []*weave.Request {
	reader := weave.NewRequestReader(conn)
	var requests []*weave.Request
	for range n {
		request, err := reader.Next()
		if err != nil {
			t.Error(err)
			return nil
		}
		requests = append(requests, request)
	}
	return requests
}

// answerTo is an image of one colour for a request.
func answerTo(t *testing.T, request *weave.Request, pixel ...byte) []byte {
	head := weave.ResponseHead{
		RequestID: request.RequestID, Width: request.Width, Height: request.Height, Channels: uint32(len(pixel)),
	}
	frame, err := head.AppendBinary(nil)
	if err != nil {
		t.Error(err)
	}
	return append(frame, bytes.Repeat(pixel, head.ImageLen()/len(pixel))...)
}

func errorFor(t *testing.T, id uint64, code weave.Code, message string) []byte {
	frame, err := (&weave.Error{RequestID: id, Code: code, Message: message}).AppendBinary(nil)
	if err != nil {
		t.Error(err)
	}
	return frame
}

func TestImageBecomesAFile(t *testing.T) {
	for _, pixel := range [][]byte{{10, 20, 30}, {10, 20, 30, 40}} {
		path := serve(t, func(conn net.Conn) {
			request := requestsOf(t, conn, 1)[0]
			if request.Width != 128 || request.Height != 64 || request.Steps != 9 || request.CFGScale != 2.5 ||
				request.Seed != 1<<63 || request.Prompts[weave.T5].Text != "two dogs" {
				t.Errorf("the request is %+v", request)
			}
			conn.Write(answerTo(t, request, pixel...))
		})
		file := filepath.Join(t.TempDir(), "image.png")
		var stderr strings.Builder
		exit := run([]string{"--width", "128", path, "-steps=9", "two dogs", "--cfg", "2.5", "--seed", "9223372036854775808",
			"-o", file}, &stderr)
		if exit != exitImage || stderr.Len() > 0 {
			t.Fatalf("exit %d: %s", exit, &stderr)
		}
		content, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer content.Close()
		made, err := png.Decode(content)
		if err != nil {
			t.Fatal(err)
		}
		want := color.NRGBA{10, 20, 30, 255}
		if len(pixel) == 4 {
			want.A = pixel[3]
		}
		last := made.Bounds().Max
		if last.X != 128 || last.Y != 64 || color.NRGBAModel.Convert(made.At(last.X-1, last.Y-1)) != want {
			t.Errorf("the image is %v, its last pixel %v", last, made.At(last.X-1, last.Y-1))
		}
	}
}

func TestAnswersComeInAnyOrder(t *testing.T) {
	path := serve(t, func(conn net.Conn) {
		requests := requestsOf(t, conn, 5)
		for i := range requests {
			conn.Write(answerTo(t, requests[len(requests)-1-i], 1, 2, 3))
		}
	})
	var stderr strings.Builder
	if exit := run([]string{path, "--count", "5"}, &stderr); exit != exitImage {
		t.Errorf("exit %d: %s", exit, &stderr)
	}
}

func TestExitCodesOfAnswers(t *testing.T) {
	for _, test := range []struct {
		name   string
		server func(net.Conn)
		exit   int
		says   string
	}{
		{"an error", func(conn net.Conn) {
			requestsOf(t, conn, 2)
			conn.Write(errorFor(t, 1, weave.CodeGPUError, "it \x1b[31mburns"))
			conn.Write(errorFor(t, 2, weave.CodeGPUError, "again"))
		}, exitError, `500 GPU_ERROR: it \x1b[31mburns`},
		{"an error and an image", func(conn net.Conn) {
			requests := requestsOf(t, conn, 2)
			conn.Write(errorFor(t, 1, weave.CodeTimeout, "late"))
			conn.Write(answerTo(t, requests[1], 1, 2, 3))
		}, exitError, "500 TIMEOUT: late"},
		{"a full server", func(conn net.Conn) {
			conn.Write(errorFor(t, 0, weave.CodeBusy, "no place"))
		}, exitError, "500 BUSY: no place"},
		{"no answer to the second", func(conn net.Conn) {
			conn.Write(answerTo(t, requestsOf(t, conn, 2)[0], 1, 2, 3))
		}, exitConnection, "1 of 2 answers are missing"},
		{"half an answer", func(conn net.Conn) {
			frame := answerTo(t, requestsOf(t, conn, 2)[0], 1, 2, 3)
			conn.Write(frame[:len(frame)-1])
		}, exitConnection, "in the middle of a frame"},
		{"the same answer twice", func(conn net.Conn) {
			frame := answerTo(t, requestsOf(t, conn, 2)[0], 1, 2, 3)
			conn.Write(append(frame, frame...))
		}, exitConnection, "request_id 1, which nothing waits for"},
		{"somebody else's answer", func(conn net.Conn) {
			requestsOf(t, conn, 2)
			conn.Write(errorFor(t, 3, weave.CodeTimeout, "late"))
		}, exitConnection, "request_id 3, which nothing waits for"},
		{"an image for no request", func(conn net.Conn) {
			request := requestsOf(t, conn, 2)[0]
			request.RequestID = 0
			conn.Write(answerTo(t, request, 1, 2, 3))
		}, exitConnection, "request_id 0, which nothing waits for"},
		{"another size", func(conn net.Conn) {
			request := requestsOf(t, conn, 2)[0]
			request.Width = 128
			conn.Write(answerTo(t, request, 1, 2, 3))
		}, exitConnection, "128×64 pixels, asked for were 64×64"},
		{"another protocol", func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n")
		}, exitConnection, "magic is 48"},
		{"silence", func(conn net.Conn) {
			io.Copy(io.Discard, conn) // until the client has given up
		}, exitConnection, "no answer within"},
		{"a byte now and then", func(conn net.Conn) {
			frame := answerTo(t, requestsOf(t, conn, 2)[0], 1, 2, 3)
			for i := range frame {
				if _, err := conn.Write(frame[i : i+1]); err != nil {
					return
				}
				time.Sleep(time.Millisecond) // is what this server is about: 12 seconds in all
			}
		}, exitConnection, "no answer within"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			timeout := "20"
			if strings.HasPrefix(test.says, "no answer within") {
				timeout = "0.2"
			}
			var stderr strings.Builder
			exit := run([]string{serve(t, test.server), "--count", "2", "--timeout", timeout}, &stderr)
			if exit != test.exit || !strings.Contains(stderr.String(), test.says) {
				t.Errorf("exit %d, expected %d; expected %q in: %s", exit, test.exit, test.says, &stderr)
			}
		})
	}
}

func TestExitCodesWithoutAnAnswer(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "nobody")
	for _, test := range []struct {
		args []string
		exit int
		says string
	}{
		{[]string{"-h"}, exitImage, "usage:"},
		{[]string{}, exitUsage, "0 arguments"},
		{[]string{nobody, "a", "b"}, exitUsage, "3 arguments"},
		{[]string{nobody, "--bogus"}, exitUsage, "bogus"},
		{[]string{nobody, "--width", "100"}, exitUsage, "width is 100"},
		{[]string{nobody, "--width", "4294967360"}, exitUsage, "width is"}, // 64 in 32 bits
		{[]string{nobody, "--steps", "0"}, exitUsage, "steps is 0"},
		{[]string{nobody, "--cfg", "NaN"}, exitUsage, "cfg_scale is NaN"},
		{[]string{nobody, "--cfg-scale", "21"}, exitUsage, "cfg_scale is 21"},
		{[]string{nobody, ""}, exitUsage, "clip_l_length is 0"},
		{[]string{nobody, "--timeout", "0"}, exitUsage, "timeout is 0"},
		{[]string{nobody, "--count", "0"}, exitUsage, "count is 0"},
		{[]string{nobody, "--count", "2", "-o", nobody}, exitUsage, "count is 2"},
		{[]string{""}, exitUsage, "address is empty"},
		{[]string{nobody}, exitConnection, nobody},
		{[]string{"--", nobody, "--bogus"}, exitConnection, nobody},
	} {
		var stderr strings.Builder
		exit := run(test.args, &stderr)
		if exit != test.exit || !strings.Contains(stderr.String(), test.says) {
			t.Errorf("%q: exit %d, expected %d; expected %q in: %s", test.args, exit, test.exit, test.says, &stderr)
		}
	}
}
