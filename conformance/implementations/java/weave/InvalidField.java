package weave;

/** A field with a value that the protocol does not allow. A server answers with {@link #code}; a writer refuses. */
public final class InvalidField extends Exception {
    public final String field;
    public final ErrorCode code;

    InvalidField(String field, ErrorCode code, String message) {
        super(message);
        this.field = field;
        this.code = code;
    }
}
