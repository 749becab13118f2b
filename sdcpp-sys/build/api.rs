//! What differs between upstream versions in `stable-diffusion.h`, read from its text.

/// The facts about a header that the C++ layer is compiled by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Api {
    /// `generate_image` returns whether it worked and hands the images out through its parameters.
    /// If not, it returns the images.
    pub(crate) flag: bool,
    /// There is a call that cancels a generation.
    pub(crate) cancel: bool,
}

/// Functions that the C++ layer calls and that look the same in all versions that have them.
const NEEDED: &[&str] = &[
    "new_sd_ctx",
    "free_sd_ctx",
    "free_sd_images",
    "sd_ctx_params_init",
    "sd_img_gen_params_init",
    "sd_set_log_callback",
    "sd_set_progress_callback",
];

/// Reads the facts from the text of a header. The error completes a sentence that begins with the
/// header's name.
pub(crate) fn read(header: &str) -> Result<Api, String> {
    let code = without_comments(header);
    if let Some(missing) = NEEDED.iter().find(|name| declaration(&code, name).is_none()) {
        return Err(format!("does not declare `{missing}`"));
    }
    let Some((result, parameters)) = declaration(&code, "generate_image") else {
        return Err("does not declare `generate_image`".to_owned());
    };
    let flag = match (result.as_str(), parameters) {
        ("sd_image_t*", 2) => false,
        ("bool", 4) => true,
        (result, parameters) => {
            return Err(format!(
                "declares `generate_image` with {parameters} parameters and result `{result}`, which Weave does not know"
            ));
        }
    };
    Ok(Api { flag, cancel: declaration(&code, "sd_cancel_generation").is_some() })
}

/// The result type, without blanks, and the number of parameters of a function.
fn declaration(code: &str, name: &str) -> Option<(String, usize)> {
    let (before, after) = code.match_indices(name).find_map(|(at, _)| {
        let (before, rest) = code.split_at(at);
        let after = rest.strip_prefix(name)?.trim_start().strip_prefix('(')?;
        let is_end = before.ends_with(|c: char| c.is_whitespace() || c == '*');
        is_end.then_some((before, after))
    })?;
    let start = before.rfind([';', '{', '}', '\n']).map_or(0, |at| at + 1);
    let result = before[start..].split_whitespace().filter(|word| *word != "SD_API").collect();
    let (parameters, _) = after.split_once(')')?;
    let count = match parameters.trim() {
        "" | "void" => 0,
        list => list.split(',').count(),
    };
    Some((result, count))
}

fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        let (before, comment) = rest.split_at(at);
        code.push_str(before);
        let end =
            if comment.starts_with("//") { comment.find('\n') } else { comment.find("*/").map(|at| at + 2) };
        rest = &comment[end.unwrap_or(comment.len())..];
    }
    code.push_str(rest);
    code
}
