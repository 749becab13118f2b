package weave_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weave.example/weave"
)

const token = "0123456789abcdefABCDEF000000000000000000000000000000000000000000"

// startWeaved starts a real one, which fails at "boom" and is stuck at "stuck" until nobody waits, and returns where it
// listens: on a Unix socket, and on a TCP port with a token.
func startWeaved(t *testing.T) (unix, tcp string) {
	t.Helper()
	program := os.Getenv("WEAVED")
	if program == "" {
		t.Fatal("set WEAVED to the path of weaved: target/example/debug/weaved after `make example`")
	}
	folder, err := os.MkdirTemp("", "weave") // of mode 0700, which weaved wants, and with a short name, which a socket needs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	unix = filepath.Join(folder, "weave.sock")
	tokenFile := filepath.Join(folder, "token")
	if err := os.WriteFile(tokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	weaved := exec.Command(program, "--no-config", "--engine", "pattern", "--pattern", "gradient",
		"--faults", "fail@boom,hang@stuck", "--generation-timeout", "60", "--cancel-timeout", "0.1",
		"--abandoned", "cancel", "--socket", unix, "--tcp", "127.0.0.1:0", "--token-file", tokenFile)
	log, err := weaved.StderrPipe()
	if err == nil {
		err = weaved.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	logged := make(chan struct{})
	t.Cleanup(func() {
		weaved.Process.Signal(syscall.SIGTERM)
		<-logged
		if err := weaved.Wait(); err != nil {
			t.Errorf("weaved: %v", err)
		}
	})
	lines := bufio.NewScanner(log) // which ends if it doesn't start
	for lines.Scan() {
		_, place, _ := strings.Cut(lines.Text(), "listening on ")
		if strings.HasPrefix(place, "tcp://") {
			tcp = strings.Fields(place)[0]
		} else if place != "" {
			go func() { // so that it can go on writing
				io.Copy(io.Discard, log)
				close(logged)
			}()
			return unix, tcp
		}
	}
	close(logged)
	t.Fatal("weaved did not start")
	return "", ""
}

// gradient is the picture that `weaved --engine pattern --pattern gradient` draws.
func gradient(request *weave.Request) []byte {
	hash := uint64(0xCBF29CE484222325)
	for _, b := range append(binary.LittleEndian.AppendUint64(nil, request.Seed), request.Prompts[weave.ClipL].Text...) {
		hash = (hash ^ uint64(b)) * 0x100000001B3
	}
	var pixels []byte
	for y := range request.Height {
		for x := range request.Width {
			pixels = append(pixels, byte(x*256/request.Width)+byte(hash), byte(y*256/request.Height)+byte(hash>>8),
				byte(hash>>16))
		}
	}
	return pixels
}

func newClient(t *testing.T, address, token string) *weave.Client {
	t.Helper()
	client, err := weave.NewClient(address, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func within(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func small(prompt string, seed uint64) *weave.Request {
	request := weave.NewRequest(prompt)
	request.Width, request.Height, request.Seed = 128, 64, seed
	return request
}

func TestClientWithWeaved(t *testing.T) {
	unix, tcp := startWeaved(t)
	ctx := within(t, 30*time.Second)
	for _, client := range []*weave.Client{newClient(t, unix, ""), newClient(t, unix, token), newClient(t, tcp, token)} {
		for seed := range uint64(2) {
			request := small("ein Käse", 1<<63+seed)
			response, err := client.Generate(ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			if response.Channels != 3 || !bytes.Equal(response.Pixels, gradient(request)) {
				t.Errorf("another picture: %v", response.ResponseHead)
			}
		}
		var answer *weave.Error
		_, err := client.Generate(ctx, small("boom", 1))
		if !errors.As(err, &answer) || answer.Code != weave.CodeGPUError || answer.Status != 500 {
			t.Errorf("%v", err)
		}
		if _, err := client.Generate(ctx, small("after an error", 1)); err != nil {
			t.Error(err)
		}
	}
	if _, err := newClient(t, tcp, strings.Repeat("0", 64)).Generate(ctx, small("x", 1)); err == nil {
		t.Error("another token was taken")
	}
	var told *weave.Error
	if _, err := newClient(t, tcp, "").Generate(ctx, small("x", 1)); !errors.As(err, &told) || told.Code != weave.CodeInvalidMagic {
		t.Errorf("without a token: %v", err)
	}
}

// TestImpostors: whoever listens where the server should be learns nothing, and is not believed.
func TestImpostors(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	line := "weave-auth 1 " + zeros + " " + zeros + "\n"
	frame, _ := (&weave.Error{Code: weave.CodeInvalidMagic, Status: 400, Message: "no token here"}).AppendBinary(nil)
	for answer, text := range map[string]string{
		"": "EOF", line: "doesn't know the token", "weave-auth 1 NONCE NONCE\n": "doesn't know the token",
		"weave-auth 1 NONCE\n": "EOF", line[:142]: "EOF", line[:142] + "\r\n": "doesn't answer",
		strings.ReplaceAll(line, "0", "A"): "doesn't answer", "HTTP/1.1 400 Bad": "doesn't answer",
		"x": "doesn't answer", "WEAVE": "doesn't answer", string(frame): "no token here",
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan string, 1)
		go func() {
			peer, err := listener.Accept()
			if err != nil {
				heard <- err.Error()
				return
			}
			defer peer.Close()
			hello := make([]byte, 78)
			io.ReadFull(peer, hello)
			io.WriteString(peer, strings.ReplaceAll(answer, "NONCE", string(hello[13:77])))
			peer.(*net.TCPConn).CloseWrite()
			rest, _ := io.ReadAll(peer)
			heard <- string(append(hello, rest...))
		}()
		_, err = newClient(t, listener.Addr().String(), token).Generate(within(t, 20*time.Second), small("x", 1))
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, must say %q", answer, err, text)
		}
		if said := <-heard; len(said) != 78 || !strings.HasPrefix(said, "weave-auth 1 ") {
			t.Errorf("%q: the client said %q", answer, said)
		}
		listener.Close()
	}

	// Nor is one waited for that says nothing.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = newClient(t, listener.Addr().String(), token).Generate(within(t, 50*time.Millisecond), small("x", 1))
	if err != context.DeadlineExceeded {
		t.Errorf("the error is %v", err)
	}
}

func TestContext(t *testing.T) {
	unix, _ := startWeaved(t)
	client := newClient(t, unix, "")
	begun := time.Now()
	if _, err := client.Generate(within(t, 200*time.Millisecond), small("stuck", 1)); err != context.DeadlineExceeded {
		t.Errorf("the error is %v", err)
	}
	if waited := time.Since(begun); waited > 5*time.Second {
		t.Errorf("it waited for %v", waited)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := client.Generate(done, small("x", 1)); err != context.Canceled {
		t.Errorf("the error is %v", err)
	}
	if _, err := client.Generate(within(t, 20*time.Second), small("x", 1)); err != nil {
		t.Error(err)
	}
}

// A server that does what it must not: one connection for each answer, and the last one is good.
func TestClientWithOtherServers(t *testing.T) {
	image := func(id uint64, width uint32) []byte {
		head := weave.ResponseHead{RequestID: id, Width: width, Height: 64, Channels: 3}
		return append(frameOf(t, &head), make([]byte, head.ImageLen())...)
	}
	for _, test := range []struct {
		answer []byte
		says   string
	}{
		{nil, "unexpected EOF"},
		{image(1, 128)[:1000], "unexpected EOF"},
		{image(1, 64), "image size is 64×64, must be 128×64"},
		{image(2, 128), "request_id is 2, must be 1"},
		{frameOf(t, &weave.Error{RequestID: 2, Code: weave.CodeTimeout}), "request_id is 2, must be 1"},
		{frameOf(t, &weave.Error{Code: weave.CodeBusy, Message: "full"}), "500 BUSY: full"},
		{[]byte("HTTP/1.1 400 Bad Request\r\n"), "magic is 48"},
	} {
		path := filepath.Join(t.TempDir(), "sock")
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for _, answer := range [][]byte{test.answer, image(2, 128)} {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				weave.NewRequestReader(conn).Next()
				conn.Write(answer)
				conn.Close()
			}
		}()
		client := newClient(t, path, "")
		if _, err := client.Generate(within(t, 20*time.Second), small("x", 1)); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("the error is %v, expected %q", err, test.says)
		}
		if _, err := client.Generate(within(t, 20*time.Second), small("x", 1)); err != nil {
			t.Errorf("after %q: %v", test.says, err)
		}
		listener.Close()
	}
}

func TestWhatIsNeverSent(t *testing.T) {
	client := newClient(t, filepath.Join(t.TempDir(), "nobody"), "")
	request := small("x", 1)
	request.Width = 65
	var fault *weave.FieldError
	if _, err := client.Generate(context.Background(), request); !errors.As(err, &fault) || fault.Field != "width" {
		t.Errorf("the error is %v", err)
	}
	for prompt, text := range map[string]string{
		"": "prompt is empty, must be 1 to 2048 bytes", strings.Repeat("é", 1025): "prompt is 2050 bytes long, must be 1 to 2048",
		"a\x00": "prompt is text with a byte 0 at 1", "\xff": "prompt is not UTF-8",
	} {
		if _, err := client.Generate(context.Background(), small(prompt, 1)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", prompt, err)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	folder := t.TempDir()
	deaf := filepath.Join(folder, "deaf")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: deaf, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port.Close()
	for address, why := range map[string]string{
		filepath.Join(folder, "none"): "(no such file or directory); start weaved, or", deaf: "(connection refused); start weaved, or",
		port.Addr().String(): "(connection refused); start weaved, or",
	} {
		_, err := newClient(t, address, "").Generate(context.Background(), small("x", 1))
		var nobody *weave.UnreachableError
		if !errors.As(err, &nobody) || err.Error() != "no server answers at "+address+" "+why+" name the address of one that runs" {
			t.Errorf("%s: %v", address, err)
		}
		if strings.HasSuffix(address, "none") && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v is no ErrNotExist", err)
		}
	}
	denied := &weave.UnreachableError{Address: deaf, Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}}
	if !strings.Contains(denied.Error(), "(permission denied); only some users may connect there") {
		t.Error(denied)
	}
}

// A connection that the server has closed is replaced, and a request is sent again at most once.
func TestIdleConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	image := func(id uint64) []byte {
		head := weave.ResponseHead{RequestID: id, Width: 128, Height: 64, Channels: 3}
		return append(frameOf(t, &head), make([]byte, head.ImageLen())...)
	}
	lastWords := frameOf(t, &weave.Error{Code: weave.CodeShuttingDown, Message: "ending"})
	var heard [5][]*weave.Request
	answered, gone := make(chan bool), make(chan bool)
	go func() {
		// What it answers on each connection; nil: it reads a request and closes.
		for i, answers := range [][][]byte{{image(1)}, {image(2), nil}, {image(3), nil}, {nil}, {image(5), image(6)[:9]}} {
			conn, err := listener.Accept()
			if err != nil {
				break
			}
			reader := weave.NewRequestReader(conn)
			for _, answer := range answers {
				request, _ := reader.Next()
				heard[i] = append(heard[i], request)
				conn.Write(answer)
			}
			if i == 0 {
				<-answered
				conn.Write(lastWords) // which is no answer to what comes next
			}
			conn.Close()
			if i == 0 {
				gone <- true
			}
		}
		close(gone)
	}()
	client := newClient(t, path, "")
	generate := func(says string) {
		t.Helper()
		request := small("x", 0)
		response, err := client.Generate(within(t, 20*time.Second), request)
		if says == "" {
			if err != nil || response.Request.Seed == 0 || request.Seed != 0 {
				t.Fatalf("%v, the request's seed is %d", err, request.Seed)
			}
		} else if err == nil || !strings.Contains(err.Error(), says) {
			t.Fatalf("%v, expected %q", err, says)
		}
	}
	generate("")
	answered <- true
	<-gone // closed while idle
	generate("")
	generate("")                                                   // closed as the request comes: the same once more
	generate("the server closed the connection before its answer") // closed as it comes, and again
	generate("")
	generate("unexpected EOF") // something of an answer had come
	<-gone
	for i, many := range []int{1, 2, 2, 1, 2} {
		if len(heard[i]) != many {
			t.Errorf("connection %d: %d requests, expected %d", i, len(heard[i]), many)
		}
	}
	if *heard[1][1] != *heard[2][0] || *heard[2][1] != *heard[3][0] {
		t.Error("another request was sent the second time")
	}
}

func TestSeveralGoroutines(t *testing.T) {
	unix, _ := startWeaved(t)
	client := newClient(t, unix, "")
	errs := make(chan error)
	for seed := range uint64(8) {
		go func() {
			for round := range uint64(3) {
				request := small("x", 1+8*round+seed)
				response, err := client.Generate(within(t, 20*time.Second), request)
				if err == nil && !bytes.Equal(response.Pixels, gradient(request)) {
					err = errors.New("another image")
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// texts are the texts of a PNG file, each with the kind of its chunk and its keyword, without the model's name, which the
// protocol doesn't tell.
func texts(file []byte) (found []string) {
	for at := 8; at+12 <= len(file); {
		size := int(binary.BigEndian.Uint32(file[at:]))
		kind, data := string(file[at+4:at+8]), file[at+8:at+8+size]
		if kind == "tEXt" || kind == "iTXt" {
			found = append(found, kind+" "+regexp.MustCompile(`Model: [^,]*, |,"model":"[^"]*"`).ReplaceAllString(string(data), ""))
		}
		at += size + 12
	}
	return found
}

func TestWeaveVerifiesWhatWasSaved(t *testing.T) {
	program := os.Getenv("WEAVE")
	if program == "" {
		t.Skip("set WEAVE to the path of weave")
	}
	unix, _ := startWeaved(t)
	folder := t.TempDir()
	here, there := filepath.Join(folder, "here.png"), filepath.Join(folder, "there.png")
	weaveSays := func(args ...string) string {
		t.Helper()
		said, err := exec.Command(program, append(args, "--socket", unix)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v", said, err)
		}
		return string(said)
	}
	for _, prompt := range []string{"a \"cat\" <in> a Käse", "猫 \\ \t☂"} {
		request := small(prompt, 1<<64-2)
		request.CFGScale, request.Steps = 1.1, 3
		response, err := newClient(t, unix, "").Generate(within(t, 20*time.Second), request)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Save(here); err != nil {
			t.Fatal(err)
		}
		weaveSays("generate", prompt, "--width=128", "--height=64", "--steps=3", "--cfg=1.1", "--seed=18446744073709551614",
			"--force", "-o", there)
		ours, _ := os.ReadFile(here)
		theirs, _ := os.ReadFile(there)
		if ours, theirs := texts(ours), texts(theirs); len(ours) != 2 || !slices.Equal(ours, theirs) {
			t.Errorf("%q\n%q", ours, theirs)
		}
		if said := weaveSays("verify", here); !strings.Contains(said, "same") {
			t.Error(said)
		}
	}
}

func TestSave(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	request := &weave.Request{Width: 128, Height: 64, Steps: 28, CFGScale: 7, Seed: 42, Prompts: weave.SamePrompt("a cat")}
	head := weave.ResponseHead{Width: 128, Height: 64, Channels: 3}
	response := &weave.Response{ResponseHead: head, Pixels: make([]byte, head.ImageLen()), Request: request}
	whole, err := response.PNG()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"tEXt parameters\x00a cat\nSteps: 28, Sampler: unknown, CFG scale: 7, Seed: 42, Size: 128x64, Version: Weave 0.1.0",
		`tEXt Weave` + "\x00" + `{"protocol":1,"model_id":0,"prompt":"a cat","width":128,"height":64,"steps":28,"cfg_scale":7.0,"seed":42,"provider":"local"}`}
	if found := texts(whole); !slices.Equal(found, want) {
		t.Errorf("%q", found)
	}
	if made, err := png.Decode(bytes.NewReader(whole)); err != nil || made.Bounds().Max.X != 128 {
		t.Error(made, err)
	}
	if bare, _ := (&weave.Response{ResponseHead: head, Pixels: response.Pixels}).PNG(); len(texts(bare)) > 0 {
		t.Errorf("%q", texts(bare))
	}

	os.WriteFile(in("old.png"), []byte("old"), 0o600)
	os.Symlink("old.png", in("link.png"))
	os.Mkdir(in("folder.png"), 0o700)
	for path, text := range map[string]string{
		in("new.png"): "", in("link.png"): "", in("folder.png"): "no regular file", "/dev/null": "no regular file",
		in(strings.Repeat("x", 300)): "file name too long", // found out when it is to get its name
		in("none/cat.png"):           "save " + in("none/cat.png") + ": no such file or directory",
	} {
		err := response.Save(path)
		if (err != nil) != (text != "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, name := range []string{"new.png", "old.png"} {
		if saved, err := os.ReadFile(in(name)); err != nil || !bytes.Equal(saved, whole) {
			t.Error(name, err)
		}
	}
	if there, err := os.Stat(in("old.png")); err != nil || there.Mode().Perm() != 0o600 {
		t.Error(there, err)
	}
	if names, err := filepath.Glob(in("*")); err != nil || len(names) != 4 {
		t.Error(names, err)
	}
	if names, _ := filepath.Glob(in(".*")); len(names) > 0 {
		t.Error(names)
	}
}

func TestWhereClientsLook(t *testing.T) {
	there := filepath.Join(t.TempDir(), "weave", "weave.sock")
	folder := filepath.Dir(filepath.Dir(there))
	if err := os.Mkdir(filepath.Dir(there), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ socket, folder, home, system, address string }{
		{"/a", "/r", "/h", there, "/a"}, {"", "/r", "/h", "/none", "/r/weave/weave.sock"},
		{"", "relative", "/h", "/none", "/h/.weave/weave.sock"}, {"", "", "/h", "/none", "/h/.weave/weave.sock"},
		{"", "", "", "/none", ""}, {"", "", "relative", "/none", ""}, {"", "", "/", "/none", ""}, {" /a\n", "", "", "/none", "/a"},
		// If nothing is there, the one for all users.
		{"", "/r", "/h", there, there}, {"", "", "/h", there, there}, {"", folder, "/h", "/tmp", there},
		{"", "", "", there, there}, {" ", "", "/", there, there},
	} {
		t.Setenv("WEAVE_SOCKET", test.socket)
		t.Setenv("XDG_RUNTIME_DIR", test.folder)
		t.Setenv("HOME", test.home)
		weave.SetSystemSocket(t, test.system)
		address, err := weave.DefaultAddress()
		if address != test.address || (err != nil) != (test.address == "") {
			t.Errorf("%v: %q, %v", test, address, err)
		}
		if _, err := weave.NewClient("", ""); (err != nil) != (test.address == "") {
			t.Errorf("%v: %v", test, err)
		}
	}
	for _, test := range []struct{ address, network, resolved string }{
		{"tcp://box:80", "tcp", "box:80"}, {"tcp://[::1]:80", "tcp", "[::1]:80"}, {"tcp://box", "", ""}, {"tcp:///a:1", "", ""},
		{"./box:80", "unix", "./box:80"},
	} {
		if network, resolved, err := weave.Network(test.address); network != test.network || resolved != test.resolved {
			t.Errorf("%s: %s, %s, %v", test.address, network, resolved, err)
		}
	}
	for _, bad := range []string{"short", strings.Repeat("g", 64), token + "\n", token + "0"} {
		if _, err := weave.NewClient("/a", bad); err == nil {
			t.Errorf("the token %q was taken", bad)
		}
	}
}

func TestImageOfPackageImage(t *testing.T) {
	for _, pixel := range [][]byte{{10, 20, 30}, {10, 20, 30, 40}} {
		head := weave.ResponseHead{Width: 128, Height: 64, Channels: uint32(len(pixel))}
		pixels := append(make([]byte, head.ImageLen()-len(pixel)), pixel...)
		made := (&weave.Response{ResponseHead: head, Pixels: pixels}).Image()
		want := color.NRGBA{10, 20, 30, 255}
		if len(pixel) == 4 {
			want.A = 40
		}
		if size := made.Bounds().Max; size.X != 128 || size.Y != 64 || made.NRGBAAt(127, 63) != want {
			t.Errorf("%v, %v", size, made.NRGBAAt(127, 63))
		}
	}
}
