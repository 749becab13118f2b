//! Section 6 of the specification, the error: what is tried on a server.

use crate::case::{Case, recommended, required};
use crate::connection::{Answer, Came};
use crate::draft::Draft;
use crate::verdict::{Remark, fail};

use super::probe::{refusals, refused};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-ERR-001a", "an error has the request_id of the refused request")
        .server_vectors(&["echo-of-*"]),
    required("W1-ERR-001b", "request_id is 0 if the payload has less than 8 bytes").server_vectors(&[
        "payload-len-0",
        "payload-len-1",
        "payload-len-7",
        "payload-len-8",
        "msg-type-unknown-empty",
        "version-2-short",
        "version-2-of-8",
    ]),
    required("W1-ERR-002a", "an error has the status of its error_code")
        .server(|server| refusals(server, "W1-ERR-002")),
    required("W1-ERR-003a", "error_msg has at most 255 bytes")
        .server(|server| refusals(server, "W1-ERR-003")),
    recommended("W1-ERR-004a", "error_msg names the field and its value").server(|server| {
        for (field, value, draft) in refused() {
            let answers = server.ask(&[draft])?;
            let Answer::Error { message, .. } = &answers[0] else { continue };
            let message = String::from_utf8_lossy(message).to_lowercase();
            let shown = match field {
                "cfg_scale" => "20.5".to_owned(),
                "msg_type" => "777".to_owned(),
                _ => value.to_string(),
            };
            for part in [field.replace('_', " ").as_str(), &shown] {
                if !message.replace('_', " ").contains(part) {
                    let problem = format!("{field} is {shown}, and error_msg is {message:?}");
                    return fail("W1-ERR-004", problem, format!("a text with {part:?} in it"));
                }
            }
        }
        Ok(Remark::Pass)
    }),
    required("W1-ERR-005a", "error_msg contains nothing of the prompt").server(|server| {
        const SECRET: &str = "xylophone";
        let too_long = SECRET.repeat(2049 / SECRET.len() + 1);
        let requests = [
            Draft::request(1, SECRET).set("width", 65),
            Draft::request(2, SECRET).set("t5_length", 5000),
            Draft::request(3, SECRET).set("t5_offset", 4_000_000_000),
            Draft::request(4, &format!("{SECRET}\0")),
            Draft::request(5, &too_long),
        ];
        let mut not_utf8 = Draft::request(6, SECRET).bytes();
        if let Some(last) = not_utf8.last_mut() {
            *last = 0xFF;
        }
        let mut connection = server.connect()?;
        let check = |came: Came| match came {
            Came::Answer(Answer::Error { message, .. }) => {
                let message = String::from_utf8_lossy(&message).to_lowercase();
                if message.contains("xyloph") || message.contains("lophone") {
                    return fail("W1-ERR-005", format!("error_msg is {message:?}"), "nothing of the prompt");
                }
                Ok(Remark::Pass)
            }
            Came::Answer(answer) => fail("", format!("the answer is {answer}"), "an error"),
            Came::Close => fail("W1-CON-005", "the server closed the connection", "an error"),
        };
        for request in requests {
            connection.write(&request.bytes());
            check(connection.receive()?)?;
        }
        connection.write(&not_utf8);
        check(connection.receive()?)
    }),
];
