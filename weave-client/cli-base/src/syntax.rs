//! Other programs' syntax in prompts, which would be drawn as words: what is certainly that is refused, and what looks
//! like it is warned of. What the engine itself makes of a prompt is in `docs/prompts.md`.

use std::fmt;

use crate::console::say;
use crate::exit::{Exit, Failure};

/// Whose words the advice is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// The `weave` command: flags.
    Command,
    /// The gateway: fields of a request.
    Gateway,
}

/// A kind of syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `<sd_cpp_extra_args>{"seed": 5}</sd_cpp_extra_args>`, for sd-server of stable-diffusion.cpp.
    ExtraArgs,
    /// `<lora:NAME:1>`, `<lyco:NAME:1>`, `<hypernet:NAME:1>`, as Automatic1111's web UI has them.
    Network,
    /// `embedding:NAME`, ComfyUI's word for a textual inversion.
    Embedding,
    /// `[a:b:0.5]` and `[a|b]`: other words after some steps, in Automatic1111's web UI.
    Schedule,
    /// `{a|b}`: one of these at random, in ComfyUI and others.
    Choice,
    /// `__name__`: a line of a file at random, in several programs.
    Wildcard,
    /// `a AND b`: two prompts, in Automatic1111's web UI.
    And,
    /// `BREAK`: a new chunk of 77 tokens, in Automatic1111's web UI.
    Break,
    /// `a::2`, Midjourney's weights.
    DoubleColon,
    /// `--ar 16:9`, `--no x`, Midjourney's parameters.
    Flag,
    /// `Negative prompt: x` and `Steps: 20, …`, as image files have them from Automatic1111's web UI.
    Pasted,
    /// `(a: 1.2)` or `(a:1,2)`, which misses the engine's own `(a:1.2)` by a blank or a comma.
    Weight,
}

impl Syntax {
    /// Nobody means these as words.
    #[must_use]
    pub const fn is_certain(self) -> bool {
        matches!(self, Self::ExtraArgs | Self::Network)
    }

    /// What it does elsewhere, and that it doesn't here.
    const fn meaning(self) -> &'static str {
        match self {
            Self::ExtraArgs => "is sd-server's way to set parameters, which Weave doesn't read",
            Self::Network => "names a LoRA or another network, and Weave has none",
            Self::Embedding => "names a textual inversion in ComfyUI, and Weave has none",
            Self::Schedule => {
                "changes words between steps in other programs; here all of it is drawn as words"
            }
            Self::Choice => "is a choice in other programs; here all of it is drawn as words",
            Self::Wildcard => "stands for words of a file in other programs; here it is drawn as a word",
            Self::And => "joins two prompts in other programs; here it is the word \"and\"",
            Self::Break => "begins a new chunk in other programs; here the word itself gets the weight -1",
            Self::DoubleColon => "is a weight in Midjourney; here it is drawn as words",
            Self::Flag => "is a parameter of Midjourney; here it is drawn as words",
            Self::Pasted => {
                "begins a negative prompt or parameters in other programs; here it is drawn as words"
            }
            Self::Weight => "is no weight as it is written",
        }
    }

    /// What to do about it.
    const fn advice(self, surface: Surface) -> &'static str {
        match (self, surface) {
            (Self::ExtraArgs, Surface::Command) => {
                "take it out, and use --seed, --steps, --cfg-scale, --width and --height"
            }
            (Self::ExtraArgs, Surface::Gateway) => {
                "take it out, and set the fields seed, steps, cfg_scale and size of the request"
            }
            (Self::Network, _) => "take it out, or put a blank after the < to have it drawn as words",
            (Self::Embedding, _) => "say in words what it stands for",
            (Self::Schedule | Self::Choice | Self::Wildcard, _) => "write the words that are meant",
            (Self::And, _) => "write it small if it is meant as a word",
            (Self::Break, _) => "leave it out, or write it small if it is meant as a word",
            (Self::DoubleColon, _) => "write (words:1.2) for a weight",
            (Self::Flag, Surface::Command) => {
                "take it out: --width, --height, --steps, --cfg-scale and --seed stand before or after the quoted prompt"
            }
            (Self::Flag, Surface::Gateway) => {
                "take it out, and set the fields size, steps, cfg_scale and seed of the request"
            }
            (Self::Pasted, _) => "take it out: there is no negative prompt",
            (Self::Weight, _) => "write it with a point and without blanks after the colon, as in (red:1.2)",
        }
    }
}

/// A piece of a prompt that is some program's syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding<'a> {
    /// Which.
    pub syntax: Syntax,
    /// The piece itself.
    pub piece: &'a str,
}

/// As much as is repeated of a prompt, in characters.
const MOST_SHOWN: usize = 40;

impl Finding<'_> {
    /// For the one who wrote the prompt, in one sentence, with what to do. The gateway's has none of the prompt's own words:
    /// what it answers may be logged.
    #[must_use]
    pub fn words(&self, surface: Surface) -> String {
        let (meaning, advice) = (self.syntax.meaning(), self.syntax.advice(surface));
        match surface {
            Surface::Command => format!("{self} in the prompt {meaning}; {advice}"),
            Surface::Gateway => {
                let what = match self.syntax {
                    Syntax::ExtraArgs => "<sd_cpp_extra_args>",
                    Syntax::Network => "<lora:…>, <lyco:…> or <hypernet:…>",
                    _ => "a piece",
                };
                format!("{what} in the prompt {meaning}; {advice}")
            }
        }
    }
}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.piece.char_indices().nth(MOST_SHOWN) {
            Some((end, _)) => write!(f, "\"{}…\"", self.piece.get(..end).unwrap_or_default()),
            None => write!(f, "\"{}\"", self.piece),
        }
    }
}

/// What the command does with a prompt before anything is sent: refuses it, or warns of it.
///
/// # Errors
/// What is [certainly](Syntax::is_certain) another program's syntax.
pub fn check(prompt: &str, is_quiet: bool) -> Result<(), Failure> {
    for found in find(prompt) {
        let words = found.words(Surface::Command);
        if found.syntax.is_certain() {
            return Err(Failure::new(Exit::Usage, words));
        }
        if !is_quiet {
            say(format_args!("warning: {words}"));
        }
    }
    Ok(())
}

/// What is in a prompt, the first of each kind; what is certain comes first. Takes time that grows with the prompt's length and no faster.
#[must_use]
pub fn find(prompt: &str) -> Vec<Finding<'_>> {
    type Find = fn(&str) -> Option<&str>;
    let finders: [(Syntax, Find); 12] = [
        (Syntax::ExtraArgs, extra_args),
        (Syntax::Network, network),
        (Syntax::Embedding, embedding),
        (Syntax::Schedule, schedule),
        (Syntax::Choice, choice),
        (Syntax::Wildcard, wildcard),
        (Syntax::And, and),
        (Syntax::Break, breaks),
        (Syntax::DoubleColon, double_colon),
        (Syntax::Flag, flag),
        (Syntax::Pasted, pasted),
        (Syntax::Weight, weight),
    ];
    let found =
        finders.into_iter().filter_map(|(syntax, find)| Some(Finding { syntax, piece: find(prompt)? }));
    found.collect()
}

fn extra_args(prompt: &str) -> Option<&str> {
    const TAG: &str = "<sd_cpp_extra_args>";
    prompt.find(TAG).and_then(|at| prompt.get(at..at + TAG.len()))
}

fn network(prompt: &str) -> Option<&str> {
    bracketed(prompt, '<', '>').find(|piece| {
        let inside = piece.get(1..piece.len() - 1).unwrap_or_default();
        let name = inside.split_once(':').filter(|(_, rest)| !rest.is_empty()).map(|(name, _)| name);
        name.is_some_and(|name| ["lora", "lyco", "hypernet"].iter().any(|it| it.eq_ignore_ascii_case(name)))
    })
}

fn embedding(prompt: &str) -> Option<&str> {
    let words = prompt.split(|c: char| c.is_whitespace() || ",()[]".contains(c));
    words.into_iter().find(|word| {
        let name = word.strip_prefix("embedding:");
        name.is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    })
}

fn schedule(prompt: &str) -> Option<&str> {
    bracketed(prompt, '[', ']').find(|piece| {
        let inside = piece.get(1..piece.len() - 1).unwrap_or_default();
        let has_letter = |text: &str| text.chars().any(char::is_alphabetic);
        let after = |(words, when): (&str, &str)| has_letter(words) && when.trim().parse::<f32>().is_ok();
        has_letter(inside) && inside.contains('|') || inside.rsplit_once(':').is_some_and(after)
    })
}

fn choice(prompt: &str) -> Option<&str> {
    bracketed(prompt, '{', '}').find(|piece| piece.contains('|'))
}

fn wildcard(prompt: &str) -> Option<&str> {
    let mut ends = prompt.match_indices("__").map(|(at, _)| at);
    let mut start = ends.next()?;
    for end in ends {
        let name = prompt.get(start + 2..end).unwrap_or_default();
        let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-/*. ".contains(&byte) && byte != b' ');
        if is_name {
            return prompt.get(start..end + 2);
        }
        start = end;
    }
    None
}

/// Not between words in capitals: those are a sign's.
fn and(prompt: &str) -> Option<&str> {
    let is_small = |word: &str| word.chars().any(char::is_lowercase);
    let words: Vec<_> = prompt.split_whitespace().collect();
    words.windows(3).find(|three| matches!(three, [a, "AND", b] if is_small(a) && is_small(b)))?;
    Some("AND")
}

/// The engine looks for it in front of what belongs to no word, and also at the end of a longer one.
fn breaks(prompt: &str) -> Option<&str> {
    let ends = |at: usize| {
        let next = prompt.as_bytes().get(at + "BREAK".len());
        next.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
    };
    prompt.match_indices("BREAK").find(|(at, _)| ends(*at)).map(|(_, word)| word)
}

fn double_colon(prompt: &str) -> Option<&str> {
    prompt.split_whitespace().find(|word| {
        word.split_once("::").is_some_and(|(before, after)| {
            before.ends_with(char::is_alphanumeric) && (after.is_empty() || after.parse::<f32>().is_ok())
        })
    })
}

fn flag(prompt: &str) -> Option<&str> {
    const NAMES: [&str; 26] = [
        "ar", "aspect", "c", "cfg", "chaos", "cref", "cw", "hd", "iw", "neg", "negative", "niji", "no", "q",
        "quality", "raw", "s", "seed", "sref", "steps", "style", "stylize", "sw", "tile", "v", "weird",
    ];
    prompt.split_whitespace().find(|word| {
        // Some editors make one long dash of two.
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('\u{2014}'));
        name.is_some_and(|name| NAMES.contains(&name))
    })
}

fn pasted(prompt: &str) -> Option<&str> {
    prompt.lines().map(str::trim_start).find_map(|line| {
        let begins = |with: &str| line.get(..with.len()).filter(|front| front.eq_ignore_ascii_case(with));
        let is_list = |line: &str| line.contains(", Sampler:") || line.contains(", CFG scale:");
        begins("negative prompt:").or_else(|| begins("steps:").filter(|_| is_list(line)))
    })
}

fn weight(prompt: &str) -> Option<&str> {
    bracketed(prompt, '(', ')').find(|piece| {
        let inside = piece.get(1..piece.len() - 1).unwrap_or_default();
        inside.rsplit_once(':').is_some_and(|(words, number)| {
            let is_number = number.trim().replace(',', ".").parse::<f32>().is_ok();
            let is_read = number.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
            is_number && !is_read && words.chars().any(char::is_alphabetic)
        })
    })
}

/// What stands between two such brackets and has none inside, with both.
fn bracketed(prompt: &str, open: char, close: char) -> impl Iterator<Item = &str> {
    let mut start = None;
    prompt.char_indices().filter_map(move |(at, c)| {
        if c == open {
            start = Some(at);
        } else if c == close {
            return prompt.get(start.take()?..=at);
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found() {
        for (prompt, syntax, piece) in [
            (
                "a cat <sd_cpp_extra_args>{\"seed\": 5}</sd_cpp_extra_args>",
                Syntax::ExtraArgs,
                "<sd_cpp_extra_args>",
            ),
            ("a <lora:x:1> cat", Syntax::Network, "<lora:x:1>"),
            ("<<LoRA:a b:0.5:0.7>", Syntax::Network, "<LoRA:a b:0.5:0.7>"),
            ("x <lyco:y>, z", Syntax::Network, "<lyco:y>"),
            ("<hypernet:y:1>", Syntax::Network, "<hypernet:y:1>"),
            ("a cat, (embedding:easynegative:1.2)", Syntax::Embedding, "embedding:easynegative:1.2"),
            ("a [red:blue:0.5] cat", Syntax::Schedule, "[red:blue:0.5]"),
            ("a [red::10] cat", Syntax::Schedule, "[red::10]"),
            ("a [red|blue] cat", Syntax::Schedule, "[red|blue]"),
            ("a {red|blue} cat", Syntax::Choice, "{red|blue}"),
            ("a __colour/warm__ cat", Syntax::Wildcard, "__colour/warm__"),
            ("a cat AND a dog", Syntax::And, "AND"),
            ("a cat BREAK a dog", Syntax::Break, "BREAK"),
            ("at DAYBREAK", Syntax::Break, "BREAK"),
            ("hot::2 dog", Syntax::DoubleColon, "hot::2"),
            ("hot:: dog", Syntax::DoubleColon, "hot::"),
            ("a cat --ar 16:9", Syntax::Flag, "--ar"),
            ("a cat \u{2014}v 6", Syntax::Flag, "\u{2014}v"),
            ("a cat\nNegative prompt: dogs", Syntax::Pasted, "Negative prompt:"),
            ("a cat\r\nSteps: 20, Sampler: Euler a, Seed: 5", Syntax::Pasted, "Steps:"),
            ("a (red: 1.2) cat", Syntax::Weight, "(red: 1.2)"),
            ("a (red:1,2) cat", Syntax::Weight, "(red:1,2)"),
        ] {
            let found = find(prompt);
            assert!(found.contains(&Finding { syntax, piece }), "{prompt}: {found:?}");
            // And no certain one that isn't meant.
            assert!(
                found.iter().all(|it| it.syntax == syntax || !it.syntax.is_certain()),
                "{prompt}: {found:?}"
            );
            for surface in [Surface::Command, Surface::Gateway] {
                let words = found[0].words(surface);
                assert!(words.contains(" in the prompt ") && words.contains("; "), "{words}");
                let is_own = surface == Surface::Command || !words.contains("easynegative");
                assert!(is_own && words.len() < 300, "{words}");
            }
        }
    }

    #[test]
    fn what_people_write_is_left_alone() {
        for prompt in [
            "a red circle on a blue background",
            "a ((very)) (red:1.2) cat, [small], (blue:0.5)",
            "\\(red\\) cat :) :( ;-) <3 >_< <- ->",
            "a clock at 12:30, ratio 16:9, [16:9], [1], (a:b)",
            "a sign that says \"ROCK AND ROLL\"",
            "a heart <3 and another > one",
            "<html> a page, <b>bold</b>, a < b",
            "std::vector in a book, C++ :: code",
            "{curly} {\"json\": 1}",
            "BREAKING news, breakfast, a break, Break",
            "__ a line __, snake_case, a__b",
            "well--known, --, -- no, a --verbose flag",
            "negative space, steps: many",
            "embedding a cat; embedding: a word",
            "\u{1f408} \u{732b} l'\u{e9}t\u{e9} \u{2014} so",
            "",
        ] {
            assert!(find(prompt).is_empty(), "{prompt}: {:?}", find(prompt));
        }
    }

    #[test]
    fn long_prompts_of_openings_take_no_longer_than_others() {
        for piece in ["<lora:", "[a:", "{|", "__a ", "(a:1", "a AND ", "BREAKx", "a::b ", "--", "embedding:("]
        {
            let prompt = piece.repeat(200_000 / piece.len());
            let started = std::time::Instant::now();
            let _ = find(&prompt);
            assert!(started.elapsed().as_secs() < 5, "{piece}");
        }
    }

    #[test]
    fn much_of_a_prompt_is_not_repeated() {
        let prompt = format!("<lora:{}:1>", "\u{e9}".repeat(1000));
        let words = find(&prompt)[0].words(Surface::Command);
        assert!(words.contains("\u{e9}\u{2026}\" in the prompt names a LoRA"), "{words}");
    }
}
