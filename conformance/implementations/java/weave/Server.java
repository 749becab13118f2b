package weave;

import java.io.Closeable;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.SocketTimeoutException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.nio.file.attribute.UserPrincipal;
import java.security.SecureRandom;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.Semaphore;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.zip.CRC32;
import jdk.net.ExtendedSocketOptions;

/**
 * A server that draws a checkerboard. Each connection has a thread, which reads a request, hands it to a few workers
 * and writes the answer before it reads the next one: a connection never has more than one image in memory.
 */
final class Server implements Closeable {
    private static final int CONNECTIONS = 256;
    /** Connections beyond those that can wait at the same time until their peer has closed, too. */
    private static final int REFUSALS = 16;
    private static final int BACKLOG = 2 * CONNECTIONS;
    private static final int WORKERS = 2;
    private static final int QUEUE = 8;
    /** Images that are drawn or not taken yet, and requests that wait for theirs: 768 MiB at most. */
    private static final int IMAGES = 64;
    private static final int CHANNELS = 3;

    private static final Duration IDLE = Duration.ofMinutes(10);
    private static final Duration WHOLE_FRAME = Duration.ofSeconds(30);
    private static final Duration ANSWER_TAKEN = Duration.ofSeconds(30);
    private static final Duration DRAIN = Duration.ofSeconds(1);
    private static final Duration STOP = Duration.ofSeconds(8);

    private final SecureRandom random = new SecureRandom();
    private final ServerSocketChannel listener;
    /** The file of the socket and its owner; null for TCP. */
    private final Path socketFile;
    private final UserPrincipal owner;
    private final UserPrincipal root = FileSystems.getDefault().getUserPrincipalLookupService()
            .lookupPrincipalByName("0");

    private final Semaphore places = new Semaphore(CONNECTIONS);
    private final Semaphore refusals = new Semaphore(REFUSALS);
    private final Semaphore images = new Semaphore(IMAGES);
    private final ThreadPoolExecutor workers = new ThreadPoolExecutor(WORKERS, WORKERS, 0, TimeUnit.SECONDS,
            new ArrayBlockingQueue<>(QUEUE));
    private final Set<Wire> wires = ConcurrentHashMap.newKeySet();
    private volatile boolean stopping;

    public static void main(String[] args) {
        try {
            Server server = new Server(Wire.address(args.length == 0 ? defaultAddress() : args[0]));
            Runtime.getRuntime().addShutdownHook(new Thread(server::close));
            server.run();
        } catch (IOException | IllegalArgumentException e) {
            System.err.println("usage: server [PATH OF A UNIX SOCKET, OR 127.0.0.1:PORT]; " + e.getMessage());
            System.exit(1);
        }
    }

    private static String defaultAddress() throws IOException {
        Path folder = Path.of(System.getenv().getOrDefault("XDG_RUNTIME_DIR", "."), "weave");
        Files.createDirectories(folder, PosixFilePermissions.asFileAttribute(
                PosixFilePermissions.fromString("rwx------")));
        return folder.resolve("weave.sock").toString();
    }

    Server(SocketAddress address) throws IOException {
        if (address instanceof UnixDomainSocketAddress unix) {
            socketFile = unix.getPath().toAbsolutePath();
            listener = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
            listenInPlace();
            owner = Files.getOwner(socketFile);
        } else {
            if (!((InetSocketAddress) address).getAddress().isLoopbackAddress()) {
                throw new IOException(address + " can be reached from other machines");
            }
            socketFile = null;
            owner = null;
            listener = ServerSocketChannel.open().bind(address, BACKLOG);
        }
    }

    /** Puts the socket into its place only once it listens and has its mode; it replaces one that nobody listens to. */
    private void listenInPlace() throws IOException {
        if (Files.exists(socketFile) && someoneListens()) {
            throw new IOException("another server listens at " + socketFile);
        }
        Path folder = Files.createTempDirectory(socketFile.getParent(), ".weave"); // of mode 0700
        try {
            Path begun = folder.resolve("s");
            listener.bind(UnixDomainSocketAddress.of(begun), BACKLOG);
            Files.setPosixFilePermissions(begun, PosixFilePermissions.fromString("rw-------"));
            Files.move(begun, socketFile, StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.delete(folder);
        }
    }

    private boolean someoneListens() {
        try {
            SocketChannel.open(UnixDomainSocketAddress.of(socketFile)).close();
            return true;
        } catch (IOException e) {
            return false;
        }
    }

    /** Accepts connections until the server is closed. */
    void run() {
        while (listener.isOpen()) {
            try {
                welcome(listener.accept());
            } catch (IOException e) {
                if (listener.isOpen()) {
                    System.err.println("a connection was not accepted: " + e);
                }
            }
        }
    }

    private void welcome(SocketChannel channel) throws IOException {
        if (!mayConnect(channel)) {
            channel.close();
        } else if (places.tryAcquire()) {
            new Thread(() -> handle(channel, this::converse, places)).start();
        } else if (refusals.tryAcquire()) {
            new Thread(() -> handle(channel, this::refuse, refusals)).start();
        } else {
            try (channel; Wire wire = new Wire(channel)) {
                refuse(wire);
            }
        }
    }

    /** Over a Unix socket, the kernel tells who the peer is: the server's own user and root may connect. */
    private boolean mayConnect(SocketChannel channel) throws IOException {
        if (socketFile == null) {
            return true;
        }
        UserPrincipal peer = channel.getOption(ExtendedSocketOptions.SO_PEERCRED).user();
        return peer.equals(owner) || peer.equals(root);
    }

    private interface Handler {
        void handle(Wire wire) throws IOException;
    }

    private void handle(SocketChannel channel, Handler handler, Semaphore place) {
        try (channel; Wire wire = new Wire(channel)) {
            wires.add(wire);
            if (stopping) {
                wire.hurry(); // close() may not have seen it
            }
            try {
                handler.handle(wire);
                wire.drain(DRAIN);
            } finally {
                wires.remove(wire);
            }
        } catch (IOException e) {
            // The peer is gone, or takes nothing: what is not yet written is dropped, and nobody else is harmed.
        } finally {
            place.release();
        }
    }

    private void refuse(Wire wire) throws IOException {
        send(wire, new ErrorAnswer(0, ErrorCode.BUSY, "all " + CONNECTIONS + " connections are taken"));
    }

    private void converse(Wire wire) throws IOException {
        ServerReader reader = new ServerReader();
        ByteBuffer in = ByteBuffer.allocate(16 * 1024).limit(0);
        long deadline = Wire.deadline(IDLE);
        while (true) {
            boolean inFrame = reader.state() == FrameReader.State.INSIDE_A_FRAME;
            ServerReader.Frame frame = reader.next(in);
            if (frame != null) {
                answer(wire, frame);
                deadline = Wire.deadline(IDLE);
                continue;
            }
            if (reader.state() == FrameReader.State.CLOSED) {
                return;
            }
            if (!inFrame && reader.state() == FrameReader.State.INSIDE_A_FRAME) {
                deadline = Wire.deadline(WHOLE_FRAME);
            }
            try {
                int count = wire.read(in.clear(), deadline);
                in.flip();
                if (count < 0 || count == 0 && stopping) {
                    return;
                }
            } catch (SocketTimeoutException e) {
                if (reader.state() == FrameReader.State.INSIDE_A_FRAME) {
                    send(wire, new ErrorAnswer(0, ErrorCode.TIMEOUT, "the frame was not complete in time"));
                }
                return;
            }
        }
    }

    private void answer(Wire wire, ServerReader.Frame frame) throws IOException {
        if (frame instanceof ErrorAnswer error) {
            send(wire, error);
        } else if (stopping) {
            send(wire, shuttingDown((Request) frame));
        } else if (images.tryAcquire()) {
            try {
                serve(wire, (Request) frame);
            } finally {
                images.release();
            }
        } else {
            send(wire, busy((Request) frame));
        }
    }

    private void serve(Wire wire, Request request) throws IOException {
        try {
            Image image = workers.submit(() -> draw(request)).get();
            wire.write(image.head, ANSWER_TAKEN);
            wire.write(ByteBuffer.wrap(image.pixels), ANSWER_TAKEN);
        } catch (RejectedExecutionException e) {
            send(wire, stopping ? shuttingDown(request) : busy(request));
        } catch (CancellationException e) {
            send(wire, shuttingDown(request));
        } catch (ExecutionException e) {
            ErrorCode code = e.getCause() instanceof OutOfMemoryError ? ErrorCode.OUT_OF_MEMORY : ErrorCode.INTERNAL;
            send(wire, new ErrorAnswer(request.requestId(), code, "the image could not be drawn"));
        } catch (InterruptedException e) {
            throw new IOException(e);
        }
    }

    private static ErrorAnswer busy(Request request) {
        return new ErrorAnswer(request.requestId(), ErrorCode.BUSY, "the queue is full");
    }

    private static ErrorAnswer shuttingDown(Request request) {
        return new ErrorAnswer(request.requestId(), ErrorCode.SHUTTING_DOWN, "the server is ending");
    }

    private static void send(Wire wire, ErrorAnswer answer) throws IOException {
        wire.write(answer.encode(), ANSWER_TAKEN);
    }

    private record Image(ByteBuffer head, byte[] pixels) {}

    private Image draw(Request request) throws InvalidField {
        long begun = System.nanoTime();
        long seed = request.seed();
        while (seed == 0) {
            seed = random.nextLong();
        }
        byte[] pixels = checkerboard(request, seed);
        long took = Math.min((System.nanoTime() - begun) / 1_000_000, 0xFFFF_FFFFL);
        System.err.printf("%dx%d pixels, %d steps, cfg_scale %s, seed %s: %d ms%n", request.width(),
                request.height(), request.steps(), request.cfgScale(), Long.toUnsignedString(seed), took);
        byte[] clipL = request.prompts().get(0).text();
        if (!request.prompts().stream().allMatch(prompt -> Arrays.equals(prompt.text(), clipL))) {
            System.err.println("its prompts differ, and the one for CLIP-L was used");
        }
        return new Image(new Response.Head(request.requestId(), took, request.width(), request.height(), CHANNELS)
                .encode(), pixels);
    }

    /**
     * Squares of 8×8 pixels, black and of a colour that takes the place of an engine: the prompt for CLIP-L and the
     * seed decide it.
     */
    private static byte[] checkerboard(Request request, long seed) {
        CRC32 crc = new CRC32();
        crc.update(request.prompts().get(0).text());
        crc.update(ByteBuffer.allocate(Long.BYTES).putLong(0, seed));
        byte[] pixels = new byte[request.width() * request.height() * CHANNELS];
        for (int i = 0; i < pixels.length; i++) {
            int x = i / CHANNELS % request.width();
            int y = i / CHANNELS / request.width();
            pixels[i] = (x / 8 + y / 8) % 2 == 0 ? 0 : (byte) (crc.getValue() >> 8 * (i % CHANNELS));
        }
        return pixels;
    }

    /** Finishes what the workers have begun, answers the rest with SHUTTING_DOWN, and waits until all is written. */
    @Override
    public void close() {
        stopping = true;
        try {
            listener.close();
            if (socketFile != null) {
                Files.deleteIfExists(socketFile);
            }
            List<Runnable> waiting = new ArrayList<>();
            workers.getQueue().drainTo(waiting);
            waiting.forEach(job -> ((Future<?>) job).cancel(false));
            workers.shutdown();
            wires.forEach(Wire::hurry);
            places.tryAcquire(CONNECTIONS, STOP.toSeconds(), TimeUnit.SECONDS);
        } catch (IOException | InterruptedException e) {
            System.err.println("the end was not clean: " + e);
        }
    }
}
