package weave;

/** Why there is no image: the codes that a server of this version sends. */
public enum ErrorCode {
    INVALID_MAGIC(1, 400),
    UNSUPPORTED_VERSION(2, 400),
    INVALID_MODEL_ID(3, 400),
    INVALID_PROMPT(4, 400),
    INVALID_DIMENSIONS(5, 400),
    INVALID_STEPS(6, 400),
    INVALID_CFG(7, 400),
    OUT_OF_MEMORY(8, 500),
    GPU_ERROR(9, 500),
    TIMEOUT(10, 500),
    MALFORMED(20, 400),
    TOO_LARGE(21, 400),
    UNSUPPORTED_TYPE(22, 400),
    BUSY(23, 500),
    SHUTTING_DOWN(24, 500),
    INTERNAL(99, 500);

    public final int number;
    public final int status;

    ErrorCode(int number, int status) {
        this.number = number;
        this.status = status;
    }

    /** The code of that number, or null: a client may well meet numbers that this version does not know. */
    public static ErrorCode of(long number) {
        for (ErrorCode code : values()) {
            if (code.number == number) {
                return code;
            }
        }
        return null;
    }
}
