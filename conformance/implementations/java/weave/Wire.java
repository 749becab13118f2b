package weave;

import java.io.Closeable;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.SocketTimeoutException;
import java.net.StandardSocketOptions;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.time.Duration;

/** A connected socket whose reads and writes wait for a bounded time. One thread uses it; others may only wake it. */
final class Wire implements Closeable {
    /** The JDK copies what is written to memory of the same size outside the heap, once a thread. */
    private static final int WRITE_SIZE = 64 * 1024;
    private static final ByteBuffer NOTHING = ByteBuffer.allocate(0);

    private final SocketChannel channel;
    private final Selector selector;
    private final SelectionKey key;
    private volatile boolean hurry;

    Wire(SocketChannel channel) throws IOException {
        this.channel = channel;
        channel.configureBlocking(false);
        if (channel.getRemoteAddress() instanceof InetSocketAddress) {
            channel.setOption(StandardSocketOptions.TCP_NODELAY, true); // small answers must not wait for each other
        }
        selector = Selector.open();
        key = channel.register(selector, 0);
    }

    /** {@code host:port}, or else the path of a Unix socket. */
    static SocketAddress address(String text) throws IOException {
        int colon = text.lastIndexOf(':');
        if (text.contains("/") || colon < 0) {
            return UnixDomainSocketAddress.of(text);
        }
        return new InetSocketAddress(InetAddress.getByName(text.substring(0, colon)),
                Integer.parseInt(text.substring(colon + 1)));
    }

    /** The time, on the clock of deadlines, when {@code patience} is over. */
    static long deadline(Duration patience) {
        return System.nanoTime() + patience.toNanos();
    }

    /** Reads some bytes: how many, -1 at the end of the stream, or 0 after {@link #hurry} when none are there. */
    int read(ByteBuffer in, long deadline) throws IOException {
        return exchange(NOTHING, in, deadline);
    }

    /** Reads, and meanwhile writes what the peer takes of {@code out}; 0 is returned after a part of it, too. */
    int exchange(ByteBuffer out, ByteBuffer in, long deadline) throws IOException {
        if (out.hasRemaining()) {
            try {
                channel.write(out);
            } catch (IOException e) {
                out.position(out.limit()); // the peer takes no more, but what it said before can still be read
            }
        }
        int count = channel.read(in);
        if (count == 0 && !hurry) {
            await(SelectionKey.OP_READ | (out.hasRemaining() ? SelectionKey.OP_WRITE : 0), deadline);
            count = channel.read(in);
        }
        return count;
    }

    /** Writes all bytes. The peer may take its time, but each part of them within {@code patience}. */
    void write(ByteBuffer out, Duration patience) throws IOException {
        int end = out.limit();
        long deadline = deadline(patience);
        while (out.position() < end) {
            int count = channel.write(out.limit(Math.min(end, out.position() + WRITE_SIZE)));
            if (count > 0) {
                deadline = deadline(patience);
            } else {
                await(SelectionKey.OP_WRITE, deadline);
            }
        }
    }

    private void await(int operations, long deadline) throws IOException {
        long left = deadline - System.nanoTime();
        if (left <= 0) {
            throw new SocketTimeoutException();
        }
        key.interestOps(operations);
        selector.select(Math.max(1, left / 1_000_000));
        selector.selectedKeys().clear();
    }

    /** From now on reads don't wait, nor does one that waits already. */
    void hurry() {
        hurry = true;
        selector.wakeup();
    }

    /**
     * Ends the own direction, and then drops what still comes, for a bounded time: to close a TCP socket with unread
     * bytes destroys the answers that the peer has not read yet.
     */
    void drain(Duration patience) {
        ByteBuffer dropped = ByteBuffer.allocate(4096);
        long deadline = deadline(patience);
        hurry = false;
        try {
            channel.shutdownOutput();
            while (System.nanoTime() - deadline < 0 && read(dropped.clear(), deadline) >= 0) {
                // until the peer has ended its direction, too
            }
        } catch (IOException e) {
            // The peer is gone, or the time is over.
        }
    }

    @Override
    public void close() throws IOException {
        channel.close();
        selector.close();
    }
}
