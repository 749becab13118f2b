package weave;

import java.nio.charset.StandardCharsets;

/** An error, as a client receives it: of any code, with any bytes as its message. */
public record ErrorMessage(long requestId, long status, long code, byte[] message, long trailing)
        implements ClientReader.Answer {
    /** The message, fit for a terminal: what is not UTF-8 is replaced, what hides or turns text is escaped. */
    public String shown() {
        StringBuilder out = new StringBuilder();
        new String(message, StandardCharsets.UTF_8).codePoints().forEach(c -> {
            switch (Character.getType(c)) {
                case Character.CONTROL, Character.FORMAT -> out.append(String.format("\\u{%x}", c));
                default -> out.appendCodePoint(c);
            }
        });
        return out.toString();
    }
}
