// Command client asks a Weave server for images.
//
// Exit codes: 0 every request got its image; 1 the server answered with an error, which is printed; 2 wrong usage, or
// the file to write can't be written; 3 the connection failed, the time was up, or the server broke the protocol.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"weave.example/weave"
)

const (
	exitImage = iota
	exitError
	exitUsage
	exitConnection
)

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

type options struct {
	network, address string
	request          weave.Request // RequestID is still to be set
	firstSeed        uint64        // drawn, unless the request has one: those after the first have the seeds after it
	count            uint64
	output           string
	timeout          time.Duration
}

// numbered is the request with this id (W1-CON-004).
func (o *options) numbered(id uint64) *weave.Request {
	request := o.request
	request.RequestID = id
	if request.Seed == 0 {
		request.Seed = o.firstSeed + id - 1
	}
	return &request
}

func run(args []string, stderr io.Writer) int {
	opts, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitImage
	}
	if err != nil {
		fmt.Fprintln(stderr, "client:", err)
		return exitUsage
	}

	// One deadline for everything: a server that sends a byte now and then can't keep the client for ever.
	deadline := time.Now().Add(opts.timeout)
	dialer := net.Dialer{Deadline: deadline}
	conn, err := dialer.Dial(opts.network, opts.address)
	if err == nil {
		defer conn.Close()
		err = conn.SetDeadline(deadline)
	}
	if err != nil {
		fmt.Fprintln(stderr, "client:", err)
		return exitConnection
	}
	return ask(conn, opts, stderr)
}

// ask sends all requests at once and takes their answers in any order (W1-CON-001, W1-CON-003).
func ask(conn net.Conn, opts *options, stderr io.Writer) int {
	go send(conn, opts)

	answers := weave.NewAnswerReader(conn)
	answered := make(map[uint64]bool)
	exit := exitImage
	for uint64(len(answered)) < opts.count {
		response, err := answers.Next()
		id := uint64(0)
		answer := new(weave.Error)
		switch {
		case err == nil:
			id = response.RequestID
		case errors.As(err, &answer):
			fmt.Fprintf(stderr, "client: the answer to request_id %d is %v\n", answer.RequestID, answer)
			exit = exitError
			if answer.RequestID == 0 { // for no request in particular: the server gives up (W1-ERR-001, W1-CON-008)
				return exit
			}
			id = answer.RequestID
		case err == io.EOF:
			fmt.Fprintf(stderr, "client: the server closed the connection; %d of %d answers are missing\n",
				opts.count-uint64(len(answered)), opts.count)
			return exitConnection
		case err == io.ErrUnexpectedEOF:
			fmt.Fprintln(stderr, "client: the server closed the connection in the middle of a frame")
			return exitConnection
		case errors.Is(err, os.ErrDeadlineExceeded):
			fmt.Fprintf(stderr, "client: no answer within %v\n", opts.timeout)
			return exitConnection
		default:
			fmt.Fprintln(stderr, "client:", err)
			return exitConnection
		}

		if id < 1 || id > opts.count || answered[id] {
			fmt.Fprintf(stderr, "client: the answer is for request_id %d, which nothing waits for\n", id)
			return exitConnection
		}
		answered[id] = true
		if response == nil {
			continue
		}
		if response.Width != opts.request.Width || response.Height != opts.request.Height { // W1-RSP-002
			fmt.Fprintf(stderr, "client: the image has %d×%d pixels, asked for were %d×%d\n",
				response.Width, response.Height, opts.request.Width, opts.request.Height)
			return exitConnection
		}
		if opts.output != "" {
			response.Request = opts.numbered(id)
			if err := response.Save(opts.output); err != nil {
				fmt.Fprintln(stderr, "client:", err)
				return exitUsage
			}
		}
	}
	return exit
}

// send writes the requests. When it fails nobody needs to know: the answers tell why, if the server could still send
// one, and end if it couldn't.
func send(conn net.Conn, opts *options) {
	var frame []byte
	for i := range opts.count {
		frame, _ = opts.numbered(i + 1).AppendBinary(frame[:0]) // parse has seen to it that this works
		if _, err := conn.Write(frame); err != nil {
			return
		}
	}
}

func parse(args []string, stderr io.Writer) (*options, error) {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is printed by the caller
	var (
		width   = flags.Uint("width", 64, "width in `PIXELS`: 64 to 2048, a multiple of 64")
		height  = flags.Uint("height", 64, "height in `PIXELS`: 64 to 2048, a multiple of 64")
		steps   = flags.Uint("steps", 4, "denoising `STEPS`: 1 to 100")
		cfg     = flags.Float64("cfg-scale", 1, "guidance `SCALE`: 0 to 20")
		seed    = flags.Uint64("seed", 0, "any `NUMBER` of 64 bits; 0 draws one")
		output  = flags.String("o", "", "write the image to `FILE`, as PNG that says how it was made")
		count   = flags.Uint64("count", 1, "how many `REQUESTS` to send at once: 1 to 1000000")
		timeout = flags.Float64("timeout", 30, "give up after `SECONDS`")
	)
	flags.Float64Var(cfg, "cfg", 1, "the same as -cfg-scale")
	var positional []string
	for rest := args; len(rest) > 0; { // options may stand before, between and after the arguments
		if err := flags.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				fmt.Fprintln(stderr, "usage: client [OPTIONS] ADDRESS [PROMPT]\n"+
					"ADDRESS is the path of a Unix socket or host:port.")
				flags.SetOutput(stderr)
				flags.PrintDefaults()
			}
			return nil, err
		}
		parsed := len(rest) - flags.NArg()
		onlyArguments := parsed > 0 && rest[parsed-1] == "--"
		rest = flags.Args()
		if onlyArguments {
			positional = append(positional, rest...)
			break
		}
		if len(rest) > 0 {
			positional = append(positional, rest[0])
			rest = rest[1:]
		}
	}

	if len(positional) < 1 || len(positional) > 2 {
		return nil, fmt.Errorf("%d arguments instead of ADDRESS and PROMPT; see client -h", len(positional))
	}
	prompt := "a cat"
	if len(positional) == 2 {
		prompt = positional[1]
	}
	if !(*timeout > 0 && *timeout <= 1e6) {
		return nil, fmt.Errorf("timeout is %v, must be more than 0 and at most 1000000 seconds", *timeout)
	}
	if *count < 1 || *count > 1e6 {
		return nil, fmt.Errorf("count is %d, must be 1 to 1000000", *count)
	}
	if *output != "" && *count > 1 {
		return nil, fmt.Errorf("count is %d, must be 1 if there is a file for the image", *count)
	}
	opts := &options{
		request: weave.Request{
			Width:    uint32(min(*width, 1<<32-1)),
			Height:   uint32(min(*height, 1<<32-1)),
			Steps:    uint32(min(*steps, 1<<32-1)),
			CFGScale: float32(*cfg),
			Seed:     *seed,
			Prompts:  weave.SamePrompt(prompt),
		},
		firstSeed: 1 + rand.Uint64N(1<<32-1),
		count:     *count,
		output:    *output,
		timeout:   time.Duration(*timeout * float64(time.Second)),
	}
	var err error
	if opts.network, opts.address, err = weave.Network(positional[0]); err != nil {
		return nil, err
	}
	_, err = opts.request.AppendBinary(nil)
	return opts, err
}
