package weave;

import java.nio.ByteBuffer;

/**
 * What reading has in common on both sides: a push parser, which is given bytes as they come, cut anywhere, and keeps
 * what it needs of an unfinished frame. It reserves no memory by itself; only bounded parts are ever stored.
 */
public abstract class FrameReader<F> {
    /** How a connection stands after the bytes read so far. */
    public enum State { BETWEEN_FRAMES, INSIDE_A_FRAME, CLOSED }

    protected final ByteBuffer header = ByteBuffer.allocate(Protocol.HEADER_SIZE);
    protected boolean closed;
    /** Bytes of the payload that have not come yet. */
    protected long left;

    /**
     * Takes bytes up to the end of one frame, and tells what became of it. Null means that all of {@code in} was taken
     * and the frame is not complete, or that the stream was given up.
     */
    public abstract F next(ByteBuffer in) throws Violation;

    public final State state() {
        if (closed) {
            return State.CLOSED;
        }
        return header.position() == 0 ? State.BETWEEN_FRAMES : State.INSIDE_A_FRAME;
    }

    /** Moves bytes of the header; true once all of it is there, and {@link #left} is payload_len. */
    protected final boolean takeHeader(ByteBuffer in) {
        move(in, header);
        left = payloadLen();
        return !header.hasRemaining();
    }

    /** Moves bytes of the payload into a part of it; true once that part is full. */
    protected final boolean take(ByteBuffer in, ByteBuffer part) {
        left -= move(in, part);
        return !part.hasRemaining();
    }

    /** Drops bytes of the payload; true once all of it has come. */
    protected final boolean skip(ByteBuffer in) {
        int count = (int) Math.min(left, in.remaining());
        in.position(in.position() + count);
        left -= count;
        return left == 0;
    }

    private static int move(ByteBuffer in, ByteBuffer part) {
        int count = Math.min(in.remaining(), part.remaining());
        part.put(part.position(), in, in.position(), count);
        part.position(part.position() + count);
        in.position(in.position() + count);
        return count;
    }

    protected final boolean magicIsRight() {
        return header.getInt(0) == Protocol.MAGIC;
    }

    protected final int version() {
        return Short.toUnsignedInt(header.getShort(4));
    }

    protected final int type() {
        return Short.toUnsignedInt(header.getShort(6));
    }

    protected final long payloadLen() {
        return Protocol.u32(header, 8);
    }
}
