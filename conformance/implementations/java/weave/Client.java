package weave;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.SocketAddress;
import java.net.SocketTimeoutException;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashSet;
import java.util.Set;

/** A client that asks for images and tells what came. It ends with 0 if all of them came, and with 1 if not. */
final class Client {
    /** How long a server may be silent; an image takes its time. */
    private static final Duration PATIENCE = Duration.ofMinutes(10);

    /** How long a server that broke a rule may take to close as well. */
    private static final Duration DRAIN = Duration.ofMillis(100);

    private final int width;
    private final int height;
    private final Set<Long> underWay = new HashSet<>();
    private boolean allCame = true;

    public static void main(String[] args) {
        String prompt = "a cat in space";
        int count = 1;
        int width = 64;
        int height = 64;
        boolean usage = args.length % 2 == 1;
        for (int i = 1; usage && i < args.length; i += 2) {
            switch (args[i]) {
                case "--count" -> count = Integer.parseInt(args[i + 1]);
                case "--width" -> width = Integer.parseInt(args[i + 1]);
                case "--height" -> height = Integer.parseInt(args[i + 1]);
                case "--prompt" -> prompt = args[i + 1];
                default -> usage = false;
            }
        }
        if (!usage) {
            System.err.println("usage: client ADDRESS [--count N] [--width PIXELS] [--height PIXELS] [--prompt TEXT]");
            System.exit(2);
        }
        try {
            System.exit(new Client(width, height).run(Wire.address(args[0]), count, prompt) ? 0 : 1);
        } catch (InvalidField | IOException e) {
            System.err.println("no image: " + (e instanceof SocketTimeoutException ? "no answer" : e.getMessage()));
            System.exit(1);
        }
    }

    Client(int width, int height) {
        this.width = width;
        this.height = height;
    }

    /** Sends {@code count} requests at once on one connection; true if an image came for each. */
    boolean run(SocketAddress address, int count, String prompt) throws IOException, InvalidField {
        byte[] text = prompt.getBytes(StandardCharsets.UTF_8);
        ByteArrayOutputStream requests = new ByteArrayOutputStream();
        for (long id = 1; id <= count; id++) {
            requests.writeBytes(Request.of(id, width, height, 28, 7.0f, 0, text, text, text).encode().array());
            underWay.add(id);
        }
        try (SocketChannel channel = SocketChannel.open(address); Wire wire = new Wire(channel)) {
            try {
                converse(wire, ByteBuffer.wrap(requests.toByteArray()));
            } catch (Violation e) {
                wire.drain(DRAIN);
                throw e;
            }
        }
        return allCame;
    }

    /** Writes and reads at the same time: a server may want its answers to be taken before it reads on. */
    private void converse(Wire wire, ByteBuffer out) throws IOException {
        ClientReader reader = new ClientReader(this::expect);
        ByteBuffer in = ByteBuffer.allocate(64 * 1024).limit(0);
        while (!underWay.isEmpty()) {
            ClientReader.Answer answer = reader.next(in);
            if (answer instanceof Response response) {
                take(response);
            } else if (answer instanceof ErrorMessage error) {
                take(error);
            } else if (wire.exchange(out, in.clear(), Wire.deadline(PATIENCE)) < 0) {
                throw new IOException("the server closed the connection");
            } else {
                in.flip();
            }
        }
    }

    /** Refuses an image that was not asked for, before its pixels are read. */
    private void expect(Response.Head head) throws Violation {
        if (!underWay.contains(head.requestId())) {
            throw new Violation("W1-RSP-011", "a response has request_id " + Long.toUnsignedString(head.requestId()));
        }
        if (head.width() != width || head.height() != height) {
            throw new Violation("W1-RSP-010", "an image has " + head.width() + "x" + head.height() + " pixels");
        }
    }

    private void take(Response response) {
        Response.Head head = response.head();
        underWay.remove(head.requestId());
        System.out.printf("image %d: %dx%d pixels, %d channels, %d ms%n", head.requestId(), head.width(),
                head.height(), head.channels(), head.generationTimeMs());
    }

    /** An error with request_id 0 is about the connection: no further answer comes on it. */
    private void take(ErrorMessage error) throws Violation {
        if (error.requestId() == 0) {
            underWay.clear();
        } else if (!underWay.remove(error.requestId())) {
            throw new Violation("W1-RSP-011", "an error has request_id " + Long.toUnsignedString(error.requestId()));
        }
        allCame = false;
        ErrorCode code = ErrorCode.of(error.code());
        System.err.printf("error %s: status %d, code %d%s: %s%n", Long.toUnsignedString(error.requestId()),
                error.status(), error.code(), code == null ? "" : " " + code, error.shown());
    }
}
