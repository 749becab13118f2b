package weave;

import java.nio.ByteBuffer;

/** Reads what a client sends. It needs 6,220 bytes of memory, whatever comes. */
public final class ServerReader extends FrameReader<ServerReader.Frame> {
    /** What became of a frame: a request that can be served, or the error that answers it. */
    public sealed interface Frame permits Request, ErrorAnswer {}

    /** As much of a payload as a request can have; the rest is skipped. */
    private final ByteBuffer payload = ByteBuffer.allocate(Protocol.MAX_REQUEST_PAYLOAD);

    @Override
    public Frame next(ByteBuffer in) {
        if (closed) {
            return null;
        }
        if (header.hasRemaining()) {
            if (!takeHeader(in)) {
                return null;
            }
            if (!magicIsRight()) {
                return giveUp(ErrorCode.INVALID_MAGIC, "the frame does not begin with WEVE");
            }
            if (payloadLen() > Protocol.MAX_SKIPPED_PAYLOAD) {
                return giveUp(ErrorCode.TOO_LARGE, "payload_len is " + payloadLen() + ", more than "
                        + Protocol.MAX_SKIPPED_PAYLOAD);
            }
            payload.clear().limit((int) Math.min(payloadLen(), payload.capacity()));
        }
        if (!take(in, payload) || !skip(in)) {
            return null;
        }
        Frame frame = judge();
        header.clear();
        return frame;
    }

    private Frame judge() {
        long requestId = payload.limit() >= 8 ? payload.getLong(0) : 0;
        if (version() != Protocol.VERSION) {
            return new ErrorAnswer(requestId, ErrorCode.UNSUPPORTED_VERSION, "version is " + version() + ", not 1");
        }
        if (type() != Protocol.TYPE_REQUEST) {
            return new ErrorAnswer(requestId, ErrorCode.UNSUPPORTED_TYPE, "msg_type is " + type() + ", not 1");
        }
        try {
            return Request.decode(payload, payloadLen());
        } catch (InvalidField e) {
            return new ErrorAnswer(requestId, e.code, e.getMessage());
        }
    }

    private Frame giveUp(ErrorCode code, String message) {
        closed = true;
        return new ErrorAnswer(0, code, message);
    }
}
