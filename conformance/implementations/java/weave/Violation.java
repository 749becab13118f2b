package weave;

import java.io.IOException;

/** The server broke a rule of the protocol, and the client has to close the connection. */
public final class Violation extends IOException {
    /** The id of the requirement that makes the client close. */
    public final String requirement;

    Violation(String requirement, String message) {
        super(message + " (" + requirement + ")");
        this.requirement = requirement;
    }
}
