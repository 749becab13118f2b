package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weave.example/weave"
)

// The test's executable is the server itself when it is started with this variable.
const asServer = "WEAVE_TEST_AS_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// patience is when a test gives up on what should come at once.
const patience = 20 * time.Second

// started serves on a TCP port until the test is over.
func started(t *testing.T, maxConnections int) *server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(listener, maxConnections)
	serve(t, s)
	return s
}

func serve(t *testing.T, s *server) {
	done := make(chan struct{})
	go func() {
		s.accept()
		close(done)
	}()
	t.Cleanup(func() {
		s.end()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	})
}

func connect(t *testing.T, s *server) net.Conn {
	t.Helper()
	conn, err := net.Dial(s.listener.Addr().Network(), s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func requestFor(id uint64, width, height uint32) []byte {
	request := weave.Request{
		RequestID: id, Width: width, Height: height, Steps: 1, CFGScale: 1, Prompts: weave.SamePrompt("a cat"),
	}
	frame, err := request.AppendBinary(nil)
	if err != nil {
		panic(err)
	}
	return frame
}

func write(t *testing.T, conn net.Conn, frames ...[]byte) {
	t.Helper()
	if _, err := conn.Write(bytes.Join(frames, nil)); err != nil {
		t.Fatal(err)
	}
}

func expectImage(t *testing.T, answers *weave.AnswerReader, id uint64, width, height uint32) {
	t.Helper()
	response, err := answers.Next()
	if err != nil {
		t.Fatal(err)
	}
	want := weave.ResponseHead{RequestID: id, Width: width, Height: height, Channels: 3}
	if response.ResponseHead != want {
		t.Fatalf("got %+v, expected %+v", response.ResponseHead, want)
	}
	for i, value := range response.Pixels {
		x, y := i/3%int(width), i/3/int(width)
		if want := byte(0xFF * ((x/8 + y/8) % 2)); value != want {
			t.Fatalf("the pixel in column %d of row %d of %d×%d has %02X, expected %02X", x, y, width, height, value, want)
		}
	}
}

func expectError(t *testing.T, answers *weave.AnswerReader, id uint64, code weave.Code) {
	t.Helper()
	response, err := answers.Next()
	answer := new(weave.Error)
	if !errors.As(err, &answer) || answer.RequestID != id || answer.Code != code || answer.Status != code.Status() {
		t.Fatalf("got %v, %v, expected %v for request %d", response, err, code, id)
	}
}

func expectEnd(t *testing.T, answers *weave.AnswerReader) {
	t.Helper()
	if response, err := answers.Next(); err != io.EOF {
		t.Fatalf("got %v, %v, expected the end of the connection", response, err)
	}
}

func TestAnswersComeInOrder(t *testing.T) {
	conn := connect(t, started(t, 10))
	bad := requestFor(4, 64, 64)
	bad[weave.HeaderLen+20+3] = 0 // steps
	write(t, conn, requestFor(1, 64, 128), requestFor(2, 2048, 64), requestFor(3, 128, 2048), bad, requestFor(5, 192, 64))
	answers := weave.NewAnswerReader(conn)
	expectImage(t, answers, 1, 64, 128)
	expectImage(t, answers, 2, 2048, 64)
	expectImage(t, answers, 3, 128, 2048)
	expectError(t, answers, 4, weave.CodeInvalidSteps)
	expectImage(t, answers, 5, 192, 64)
}

func TestClientMayEndItsDirection(t *testing.T) {
	conn := connect(t, started(t, 10))
	write(t, conn, requestFor(1, 2048, 2048), requestFor(2, 64, 64), []byte("WE"))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answers := weave.NewAnswerReader(conn)
	expectImage(t, answers, 1, 2048, 2048)
	expectImage(t, answers, 2, 64, 64)
	expectEnd(t, answers)
}

func TestLostStreamIsAnsweredAndClosed(t *testing.T) {
	s := started(t, 10)
	for code, begin := range map[weave.Code]string{
		weave.CodeInvalidMagic: "WEVX",
		weave.CodeTooLarge:     "WEVE\x00\x01\x00\x01\x00\xA0\x00\x01\x00\x00\x00\x00",
	} {
		conn := connect(t, s)
		// More than what a socket holds: it gets through only if the server goes on taking it.
		write(t, conn, requestFor(1, 64, 64), []byte(begin), make([]byte, 10<<20))
		answers := weave.NewAnswerReader(conn)
		expectImage(t, answers, 1, 64, 64)
		expectError(t, answers, 0, code)
		expectEnd(t, answers)
	}
}

func TestClientThatTakesNothingIsNotReadFrom(t *testing.T) {
	s := started(t, 10)
	greedy := connect(t, s)
	frame := requestFor(1, 2048, 2048)
	sent := 0
	for {
		greedy.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := greedy.Write(frame[sent%len(frame):])
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent > 64<<20 {
			t.Fatalf("the server took %d bytes of requests and got rid of no answer", sent)
		}
	}

	other := connect(t, s) // which is not harmed by that (W1-CON-012)
	write(t, other, requestFor(2, 64, 64))
	expectImage(t, weave.NewAnswerReader(other), 2, 64, 64)

	expectImage(t, weave.NewAnswerReader(greedy), 1, 2048, 2048)
}

func TestFullServerSaysSo(t *testing.T) {
	s := started(t, 2)
	var conns []net.Conn
	for range 2 {
		conn := connect(t, s)
		write(t, conn, requestFor(1, 64, 64))
		expectImage(t, weave.NewAnswerReader(conn), 1, 64, 64)
		conns = append(conns, conn)
	}
	third := connect(t, s)
	answers := weave.NewAnswerReader(third)
	expectError(t, answers, 0, weave.CodeBusy)
	expectEnd(t, answers)
	third.Close()

	conns[0].Close()
	for begin := time.Now(); ; { // until the server has seen that
		conn := connect(t, s)
		conn.Write(requestFor(3, 64, 64))
		_, err := weave.NewAnswerReader(conn).Next()
		conn.Close()
		if err == nil {
			return
		}
		if time.Since(begin) > patience {
			t.Fatalf("a place was given up, and yet: %v", err)
		}
	}
}

func TestEndFinishesWhatWasBegun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s := newServer(listenAt(t, path), 10)
	serve(t, s)
	idle := connect(t, s)
	write(t, idle, requestFor(1, 64, 64), []byte("WEVE"))
	idleAnswers := weave.NewAnswerReader(idle)
	expectImage(t, idleAnswers, 1, 64, 64)

	busy := connect(t, s)
	write(t, busy, requestFor(1, 2048, 2048), requestFor(2, 64, 64), requestFor(3, 64, 64))
	begin := make([]byte, 1) // so the server has begun; the rest does not fit into the socket
	if _, err := io.ReadFull(busy, begin); err != nil {
		t.Fatal(err)
	}

	s.end()
	expectEnd(t, idleAnswers) // the last call is over
	answers := weave.NewAnswerReader(io.MultiReader(bytes.NewReader(begin), busy))
	expectImage(t, answers, 1, 2048, 2048)
	expectError(t, answers, 2, weave.CodeShuttingDown)
	expectError(t, answers, 3, weave.CodeShuttingDown)
	expectEnd(t, answers)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file is still there: %v", err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the server still listens")
	}
}

func listenAt(t *testing.T, path string) net.Listener {
	t.Helper()
	listener, err := listenUnix(path)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func TestPeerOfAnotherUserGetsNoAnswer(t *testing.T) {
	s := newServer(listenAt(t, filepath.Join(t.TempDir(), "sock")), 10)
	s.owner++
	serve(t, s)
	conn := connect(t, s)
	conn.Write(requestFor(1, 64, 64)) // may fail already
	if answer, err := io.ReadAll(conn); len(answer) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got % X, %v, expected the connection to be closed", answer, err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	listenAt(t, path)
	file, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if file.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket's mode is %v", file.Mode())
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	listenAt(t, path)
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("a second server at the same path: %v", err)
	}
}

func TestSocketOfASuccessorIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	first := listenAt(t, path)
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	listenAt(t, path)
	first.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestFileThatIsNoSocketIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil {
		t.Error("a file was replaced")
	}
	if content, err := os.ReadFile(path); string(content) != "mine" {
		t.Errorf("the file has %q, %v", content, err)
	}
}

// process starts the server as a process of its own and waits until it listens. It returns where.
func process(t *testing.T, args ...string) (command *exec.Cmd, address string) {
	t.Helper()
	command = exec.Command(os.Args[0], args...)
	command.Env = append(os.Environ(), asServer+"=1")
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { command.Process.Kill() })
	line, err := bufio.NewReader(stderr).ReadString('\n')
	address, ok := strings.CutPrefix(line, "listening on ")
	if err != nil || !ok {
		t.Fatalf("the server says %q, %v", line, err)
	}
	return command, strings.TrimSpace(address)
}

func TestProcessEndsBySignal(t *testing.T) {
	command, address := process(t, "127.0.0.1:0")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	answers := weave.NewAnswerReader(conn)
	write(t, conn, requestFor(1, 64, 64))
	expectImage(t, answers, 1, 64, 64)

	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, answers)
	conn.Close()
	if err := command.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"a", "b"}, {"--bogus", "a"}, {"--max-connections", "0", "a"}, {":7000"}, {strings.Repeat("x", 200)},
	} {
		command := exec.Command(os.Args[0], args...)
		command.Env = append(os.Environ(), asServer+"=1")
		output, _ := command.CombinedOutput()
		if command.ProcessState.ExitCode() != 2 || len(output) == 0 {
			t.Errorf("%q: exit %d: %s", args, command.ProcessState.ExitCode(), output)
		}
	}
}
