//! An image in the terminal: which of four ways it can, and the bytes for it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use weave_cli_base::exit::{Exit, Failure};
use weave_cli_base::image::Made;
use weave_client::Channels;

use crate::terminal;

/// How an image is shown in a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Show {
    /// The first of the following that the terminal supports
    Auto,
    /// kitty's graphics protocol; also Ghostty, Konsole, WezTerm
    Kitty,
    /// iTerm2's inline images; also mintty, WezTerm
    Iterm2,
    /// Sixel graphics; also foot, mlterm, Windows Terminal, xterm -ti vt340
    Sixel,
    /// Coloured characters
    HalfBlocks,
}

/// A way to show an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Kitty,
    Iterm2,
    Sixel,
    HalfBlocks {
        /// 24 bits a colour, else the 256 of xterm.
        true_colour: bool,
    },
}

/// A terminal that an image can be shown on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    way: Way,
    size: Size,
}

/// Of a terminal: characters, and pixels of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    columns: u32,
    rows: u32,
    cell: (u32, u32),
}

impl Screen {
    /// Finds out how, before there is an image.
    pub(crate) fn find(how: Show) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let way = match how {
            Show::Auto if !io::stdout().is_terminal() => {
                let what = "standard output is no terminal that could show an image";
                let next = "leave out --show, or say how, as in --show=sixel";
                return Err(Failure::new(Exit::Usage, what).next(next));
            }
            Show::Auto if std::env::var_os("TERM").is_some_and(|term| term == "dumb") => {
                let what = "the terminal can't show an image: TERM is \"dumb\"";
                return Err(Failure::new(Exit::Usage, what).next("leave out --show"));
            }
            Show::Auto => choose(&variable, terminal::ask().as_deref()),
            Show::Kitty => Way::Kitty,
            Show::Iterm2 => Way::Iterm2,
            Show::Sixel => Way::Sixel,
            Show::HalfBlocks => half_blocks(&variable),
        };
        Ok(Self { way, size: Size::of_terminal() })
    }

    /// What to write so that the terminal shows the image, of which `png` is a file.
    pub(crate) fn picture(&self, image: &Made, png: &[u8]) -> Vec<u8> {
        match self.way {
            Way::Kitty => kitty(image, png, self.size),
            Way::Iterm2 => iterm2(image, png, self.size),
            Way::Sixel => sixel(&Picture::of(image).within(self.size.pixels())),
            Way::HalfBlocks { true_colour } => {
                let picture = Picture::of(image).within((self.size.columns, 2 * self.size.rows_for_images()));
                blocks(&picture, true_colour)
            }
        }
    }
}

/// What a terminal can, by its environment and by what it has [answered](terminal::ask), if it has.
fn choose(variable: &dyn Fn(&str) -> Option<String>, answer: Option<&[u8]>) -> Way {
    let is = |name: &str, values: &[&str]| variable(name).is_some_and(|value| values.contains(&&*value));
    // What runs inside of these sees the environment of the terminal around them, which isn't reached.
    let wrapped = ["TMUX", "STY", "ZELLIJ"].into_iter().any(|name| variable(name).is_some());
    let answer = String::from_utf8_lossy(answer.unwrap_or_default()).into_owned();
    if answer.contains("\x1b_Gi=31;OK") {
        return Way::Kitty;
    }
    // These two have no question for it.
    let iterm2 = is("TERM_PROGRAM", &["iTerm.app", "WezTerm", "mintty"]) || is("LC_TERMINAL", &["iTerm2"]);
    if iterm2 && !wrapped {
        return Way::Iterm2;
    }
    // `ESC [ ? 62 ; 4 c`: a list of what it is, in which 4 stands for Sixel.
    let attributes = answer.rsplit_once("\x1b[?").and_then(|(_, rest)| rest.split_once('c'));
    if attributes.is_some_and(|(list, _)| list.split(';').any(|attribute| attribute == "4")) {
        return Way::Sixel;
    }
    if answer.is_empty() && !wrapped && is("TERM", &["xterm-kitty", "xterm-ghostty"]) {
        return Way::Kitty;
    }
    half_blocks(variable)
}

fn half_blocks(variable: &dyn Fn(&str) -> Option<String>) -> Way {
    let true_colour = variable("COLORTERM").is_some_and(|value| value == "truecolor" || value == "24bit")
        || variable("TERM").is_some_and(|value| value.ends_with("-direct"));
    Way::HalfBlocks { true_colour }
}

impl Size {
    fn of_terminal() -> Self {
        let [columns, rows, width, height] = terminal::size().unwrap_or_default();
        Self::of(columns, rows, width, height)
    }

    /// What isn't known is 0, and taken to be usual.
    fn of(columns: u16, rows: u16, width: u16, height: u16) -> Self {
        let known = |number: u16, usual: u32| if number == 0 { usual } else { number.into() };
        let (columns, rows) = (known(columns, 80), known(rows, 24));
        let cell = |pixels: u16, cells: u32, usual: u32| match u32::from(pixels) / cells {
            0 => usual,
            pixels => pixels,
        };
        Self { columns, rows, cell: (cell(width, columns, 8), cell(height, rows, 16)) }
    }

    /// One for the line of text that follows.
    fn rows_for_images(self) -> u32 {
        (self.rows - 1).max(1)
    }

    fn pixels(self) -> (u32, u32) {
        (self.columns * self.cell.0, self.rows_for_images() * self.cell.1)
    }

    /// The columns that an image may take, if it has to be made smaller.
    fn columns_for(self, image: &Made) -> Option<u32> {
        let (width, height) = (image.width, image.height);
        let (most_width, most_height) = self.pixels();
        let (fits, _) = fit((width, height), (most_width, most_height));
        (fits < width).then(|| (fits / self.cell.0).max(1))
    }
}

/// The largest size of this form that isn't larger than the image nor than there is room.
fn fit((width, height): (u32, u32), (most_width, most_height): (u32, u32)) -> (u32, u32) {
    if width <= most_width && height <= most_height {
        return (width, height);
    }
    if u64::from(width) * u64::from(most_height) > u64::from(height) * u64::from(most_width) {
        (most_width, (height * most_width / width).max(1))
    } else {
        ((width * most_height / height).max(1), most_height)
    }
}

/// kitty takes a PNG file in pieces of at most 4096 bytes.
fn kitty(image: &Made, png: &[u8], size: Size) -> Vec<u8> {
    let data = BASE64.encode(png);
    let columns = size.columns_for(image).map_or(String::new(), |columns| format!(",c={columns}"));
    let mut keys = format!("a=T,f=100,q=2{columns},");
    let mut out = Vec::new();
    let mut pieces = data.as_bytes().chunks(4096).peekable();
    while let Some(piece) = pieces.next() {
        out.extend(format!("\x1b_G{keys}m={};", u8::from(pieces.peek().is_some())).bytes());
        out.extend(piece);
        out.extend(b"\x1b\\");
        keys.clear();
    }
    out.push(b'\n');
    out
}

fn iterm2(image: &Made, png: &[u8], size: Size) -> Vec<u8> {
    let width = match size.columns_for(image) {
        Some(columns) => columns.to_string(),
        None => format!("{}px", image.width),
    };
    let (length, data) = (png.len(), BASE64.encode(png));
    format!("\x1b]1337;File=inline=1;size={length};width={width};preserveAspectRatio=1:{data}\x07\n").into()
}

/// Pixels without alpha: what lies behind is taken to be black.
struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn of(image: &Made) -> Self {
        let pixels = match image.channels {
            Channels::Rgb => image.pixels.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect(),
            Channels::Rgba => {
                let over = |value: u8, alpha: u8| byte(u32::from(value) * u32::from(alpha) / 255);
                image.pixels.chunks_exact(4).map(|p| [p[0], p[1], p[2]].map(|v| over(v, p[3]))).collect()
            }
        };
        Self { width: image.width, height: image.height, pixels }
    }

    /// Made smaller, if that's what it takes, each pixel the mean of those in its place.
    fn within(self, room: (u32, u32)) -> Self {
        let (width, height) = fit((self.width, self.height), room);
        if (width, height) == (self.width, self.height) {
            return self;
        }
        let mut pixels = Vec::new();
        for y in 0..height {
            let rows = y * self.height / height..((y + 1) * self.height / height);
            for x in 0..width {
                let columns = x * self.width / width..((x + 1) * self.width / width);
                let (mut sum, mut count) = ([0; 3], 0);
                for row in rows.clone() {
                    for column in columns.clone() {
                        let pixel = self.pixel(column, row);
                        sum = [0, 1, 2].map(|channel| sum[channel] + u32::from(pixel[channel]));
                        count += 1;
                    }
                }
                pixels.push(sum.map(|sum| byte(sum / count.max(1))));
            }
        }
        Self { width, height, pixels }
    }

    /// Black outside.
    fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        self.pixels.get((y * self.width + x) as usize).copied().unwrap_or_default()
    }
}

fn byte(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// Values of a channel: every 51st, which makes 216 colours.
const LEVELS: u32 = 6;

/// Sixel has a palette: the image is dithered to 216 colours. A character stands for six rows of one
/// column in one colour.
fn sixel(picture: &Picture) -> Vec<u8> {
    let (width, height) = (picture.width, picture.height);
    let indices = dithered(picture);
    let mut out = format!("\x1bPq\"1;1;{width};{height}");
    // Writing to a `String` doesn't fail.
    for index in 0..LEVELS * LEVELS * LEVELS {
        let percent = |level: u32| level * 100 / (LEVELS - 1);
        let (r, g, b) = (index / (LEVELS * LEVELS), index / LEVELS % LEVELS, index % LEVELS);
        let _ = write!(out, "#{index};2;{};{};{}", percent(r), percent(g), percent(b));
    }
    for band in indices.chunks(6 * width as usize) {
        let mut used = band.to_vec();
        used.sort_unstable();
        used.dedup();
        for colour in used {
            let _ = write!(out, "#{colour}");
            let sixels = (0..width as usize).map(|x| {
                let rows = band.chunks(width as usize).enumerate();
                rows.fold(0u8, |bits, (row, of)| bits | u8::from(of[x] == colour) << row)
            });
            let mut run: (u8, u32) = (0, 0);
            let mut flush = |(bits, count): (u8, u32)| {
                let character = char::from(63 + bits);
                match count {
                    0..4 => (0..count).for_each(|_| out.push(character)),
                    _ => drop(write!(out, "!{count}{character}")),
                }
            };
            for bits in sixels {
                if bits != run.0 {
                    flush(run);
                    run = (bits, 0);
                }
                run.1 += 1;
            }
            flush(run);
            // Back to the beginning of these six rows.
            out.push('$');
        }
        // To the next ones.
        out.push('-');
    }
    out.push_str("\x1b\\\n");
    out.into_bytes()
}

/// The nearest colour of the palette for each pixel, with what it is off by handed on to the neighbours as
/// Floyd and Steinberg have it.
fn dithered(picture: &Picture) -> Vec<u8> {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let mut indices = Vec::with_capacity(width * height);
    // One more on either side takes what falls off the edge. In sixteenths.
    let (mut here, mut below) = (vec![[0i32; 3]; width + 2], vec![[0i32; 3]; width + 2]);
    for row in picture.pixels.chunks(width) {
        for (x, pixel) in row.iter().enumerate() {
            let mut index = 0;
            for channel in 0..3 {
                let value = (i32::from(pixel[channel]) + here[x + 1][channel] / 16).clamp(0, 255);
                let level = (value + 25) / 51;
                index = index * 6 + level;
                let off = value - level * 51;
                here[x + 2][channel] += off * 7;
                below[x][channel] += off * 3;
                below[x + 1][channel] += off * 5;
                below[x + 2][channel] += off;
            }
            indices.push(u8::try_from(index).unwrap_or_default());
        }
        here = std::mem::replace(&mut below, vec![[0; 3]; width + 2]);
    }
    indices
}

/// Two rows in one line: the upper half of a character in the colour of the text, the lower in that of its
/// background.
fn blocks(picture: &Picture, true_colour: bool) -> Vec<u8> {
    let colour = |[r, g, b]: [u8; 3]| match true_colour {
        true => format!("2;{r};{g};{b}"),
        false => {
            // The 6×6×6 cube of xterm, whose levels are 0, 95, 135, 175, 215, 255.
            let level = |value: u8| match value {
                0..48 => 0,
                48..115 => 1,
                _ => (u32::from(value) - 35) / 40,
            };
            format!("5;{}", 16 + 36 * level(r) + 6 * level(g) + level(b))
        }
    };
    let mut out = String::new();
    for y in (0..picture.height).step_by(2) {
        let mut before = String::new();
        for x in 0..picture.width {
            let upper = colour(picture.pixel(x, y));
            let colours = if y + 1 < picture.height {
                format!("\x1b[38;{upper};48;{}m", colour(picture.pixel(x, y + 1)))
            } else {
                // The terminal's own.
                format!("\x1b[38;{upper};49m")
            };
            if colours != before {
                out.push_str(&colours);
                before = colours;
            }
            out.push('▀');
        }
        out.push_str("\x1b[0m\n");
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(environment: &[(&str, &str)], answer: Option<&[u8]>) -> Way {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        choose(&variable, answer)
    }

    const PLAIN: Way = Way::HalfBlocks { true_colour: false };

    #[test]
    fn what_the_terminal_says_comes_before_its_environment() {
        let kitty = b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c".as_slice();
        let sixel = b"\x1b[?62;4;22c".as_slice();
        let neither = b"\x1b_Gi=31;EINVAL\x1b\\\x1b[?64;1;2;14;24c".as_slice();
        let wezterm = &[("TERM_PROGRAM", "WezTerm")];
        let old_kitty = &[("TERM", "xterm-kitty")];
        assert_eq!(chosen(&[], Some(kitty)), Way::Kitty);
        assert_eq!(chosen(wezterm, Some(kitty)), Way::Kitty);
        assert_eq!(chosen(wezterm, Some(sixel)), Way::Iterm2);
        assert_eq!(chosen(&[("LC_TERMINAL", "iTerm2")], None), Way::Iterm2);
        assert_eq!(chosen(&[], Some(sixel)), Way::Sixel);
        assert_eq!(chosen(&[], Some(b"\x1b[?4c")), Way::Sixel);
        assert_eq!(chosen(&[], Some(neither)), PLAIN);
        assert_eq!(chosen(old_kitty, None), Way::Kitty);
        assert_eq!(chosen(old_kitty, Some(neither)), PLAIN);
        assert_eq!(chosen(&[], None), PLAIN);
    }

    #[test]
    fn a_multiplexer_is_not_taken_for_the_terminal_around_it() {
        for inside in [("TMUX", "/tmp/tmux"), ("STY", "1.pts"), ("ZELLIJ", "0")] {
            assert_eq!(chosen(&[("LC_TERMINAL", "iTerm2"), inside], None), PLAIN);
            assert_eq!(chosen(&[("TERM", "xterm-kitty"), inside], None), PLAIN);
            assert_eq!(chosen(&[("TERM", "tmux-256color"), inside], Some(b"\x1b[?1;2;4c")), Way::Sixel);
        }
    }

    #[test]
    fn true_colour_is_told_by_the_environment() {
        let full = Way::HalfBlocks { true_colour: true };
        assert_eq!(chosen(&[("COLORTERM", "truecolor")], None), full);
        assert_eq!(chosen(&[("COLORTERM", "24bit")], None), full);
        assert_eq!(chosen(&[("TERM", "xterm-direct")], None), full);
        assert_eq!(chosen(&[("COLORTERM", "yes"), ("TERM", "xterm-256color")], None), PLAIN);
    }

    #[test]
    fn an_image_fits_into_the_window_and_keeps_its_form() {
        assert_eq!(fit((512, 512), (640, 700)), (512, 512));
        assert_eq!(fit((2048, 1024), (640, 700)), (640, 320));
        assert_eq!(fit((64, 2048), (640, 100)), (3, 100));
        assert_eq!(fit((2048, 64), (10, 10)), (10, 1));
        // What a terminal doesn't say is taken to be usual.
        assert_eq!(Size::of(0, 0, 0, 0), Size { columns: 80, rows: 24, cell: (8, 16) });
        assert_eq!(Size::of(100, 50, 1000, 1000).pixels(), (1000, 49 * 20));
        assert_eq!(Size::of(1, 1, 1, 1).pixels(), (1, 1));
    }

    fn flag() -> Picture {
        let pixels = (0..8 * 7).map(|i| if i % 8 < 4 { [255, 0, 0] } else { [0, 0, 255] }).collect();
        Picture { width: 8, height: 7, pixels }
    }

    #[test]
    fn sixels_are_six_rows_of_one_colour() {
        let text = String::from_utf8(sixel(&flag())).unwrap();
        let (head, body) = text.split_once("#215;2;100;100;100").unwrap();
        assert!(head.starts_with("\x1bPq\"1;1;8;7#0;2;0;0;0#1;2;0;0;20#"), "{head:?}");
        // Blue is 5, red 180. Of the seven rows six come first: all six bits, then the lowest one.
        assert_eq!(body, "#5!4?!4~$#180!4~!4?$-#5!4?!4@$#180!4@!4?$-\x1b\\\n");
    }

    #[test]
    fn dithering_keeps_the_mean() {
        let (width, height) = (64, 64);
        let picture = Picture { width, height, pixels: vec![[70, 128, 200]; 64 * 64] };
        let indices = dithered(&picture);
        let mean = |of: fn(u32) -> u32| {
            indices.iter().map(|index| of(u32::from(*index)) * 51).sum::<u32>() / (width * height)
        };
        let means = [mean(|i| i / 36), mean(|i| i / 6 % 6), mean(|i| i % 6)];
        for (mean, meant) in means.into_iter().zip([70, 128, 200]) {
            assert!(mean.abs_diff(meant) <= 2, "{means:?}");
        }
    }

    #[test]
    fn half_a_character_is_a_pixel() {
        let text = |true_colour| String::from_utf8(blocks(&flag(), true_colour)).unwrap();
        let full = text(true);
        let lines: Vec<_> = full.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "\x1b[38;2;255;0;0;48;2;255;0;0m▀▀▀▀\x1b[38;2;0;0;255;48;2;0;0;255m▀▀▀▀\x1b[0m");
        // There is nothing below the last row.
        assert!(lines[3].starts_with("\x1b[38;2;255;0;0;49m▀▀▀▀\x1b[38;2;0;0;255;49m▀"), "{:?}", lines[3]);
        assert!(text(false).starts_with("\x1b[38;5;196;48;5;196m▀"), "{:?}", text(false));
    }

    #[test]
    fn a_smaller_picture_is_made_of_means() {
        let small = flag().within((2, 100));
        assert_eq!((small.width, small.height, small.pixels), (2, 1, vec![[255, 0, 0], [0, 0, 255]]));
        let one = flag().within((1, 1));
        assert_eq!(one.pixels, [[127, 0, 127]]);
    }
}
