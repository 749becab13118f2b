//! Pictures that test servers draw, so that the order of pixels and channels can be seen.
//!
//! The **gradient** has, in column x of row y of an image of w×h pixels, red 256·x/w, green 256·y/h (both rounded down) and
//! blue 0, each plus a number of its own that is the same for all pixels, modulo 256. The **checkerboard** has blocks of
//! 8×8 pixels, all channels 0 or 255; it shows neither the order of channels nor what is up and left.

/// What a picture can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Of pixels.
    Place,
    /// Of a pixel's channels.
    Colour,
}

/// What a picture says of the order of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is a reference, which can show these.
    Right(&'static [Order]),
    /// It would be a reference in another order, which is said.
    Wrong(Order, String),
    /// It is another picture.
    Unknown,
}

/// Width, height and channels of a picture.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    height: usize,
    channels: usize,
}

/// Where the byte for (x, y, channel) is, in one order or another.
type Place = fn(Shape, usize, usize, usize) -> usize;

const PLACES: [(&str, Place); 5] = [
    ("", |shape, x, y, channel| (y * shape.width + x) * shape.channels + channel),
    ("column after column", |shape, x, y, channel| (x * shape.height + y) * shape.channels + channel),
    ("channel after channel", |shape, x, y, channel| (channel * shape.height + y) * shape.width + x),
    ("with three bytes a pixel, and four channels", |shape, x, y, channel| {
        (y * shape.width + x) * 3 + channel
    }),
    ("with alpha first", |shape, x, y, channel| {
        (y * shape.width + x) * shape.channels + (channel + 1) % shape.channels
    }),
];

const COLOURS: [(&str, [usize; 3]); 6] = [
    ("", [0, 1, 2]),
    ("blue, green, red", [2, 1, 0]),
    ("red, blue, green", [0, 2, 1]),
    ("green, red, blue", [1, 0, 2]),
    ("green, blue, red", [2, 0, 1]),
    ("blue, red, green", [1, 2, 0]),
];

/// What the picture, which has as many bytes as it has to, says of their order.
pub(super) fn judge(data: &[u8], width: u64, height: u64, channels: u64) -> Judgement {
    let number = |number: u64| usize::try_from(number).unwrap_or(0);
    let shape = Shape { width: number(width), height: number(height), channels: number(channels) };
    if data.len() != shape.width * shape.height * shape.channels || shape.channels < 3 {
        return Judgement::Unknown;
    }
    let mut almost = None;
    for (colour, channel_at) in COLOURS {
        for (place, at) in PLACES {
            if shape.channels == 3 && (place.contains("four") || place.contains("alpha")) {
                continue;
            }
            for (turn, flip_x, flip_y) in [
                ("", false, false),
                ("from the bottom", false, true),
                ("from the right", true, false),
                ("from the bottom and from the right", true, true),
            ] {
                let byte = |x: usize, y: usize, channel: usize| {
                    let x = if flip_x { shape.width - 1 - x } else { x };
                    let y = if flip_y { shape.height - 1 - y } else { y };
                    data[at(shape, x, y, channel_at[channel])]
                };
                let words: Vec<&str> =
                    [turn, place, colour].into_iter().filter(|word| !word.is_empty()).collect();
                match (gradient(shape, byte), words.is_empty()) {
                    (Match::Whole, true) => return Judgement::Right(&[Order::Place, Order::Colour]),
                    (Match::Whole, false) => {
                        let order =
                            if turn.is_empty() && place.is_empty() { Order::Colour } else { Order::Place };
                        return Judgement::Wrong(order, words.join(", "));
                    }
                    (Match::Almost(x, y), true) => {
                        almost = Some(format!("the pixel in column {x} of row {y} is another"));
                    }
                    _ => {}
                }
                // What is up and left it doesn't show: black and white would only change places.
                if turn.is_empty() && colour.is_empty() {
                    match (checkerboard(shape, byte), place.is_empty()) {
                        (Match::Whole, true) => return Judgement::Right(&[Order::Place]),
                        (Match::Whole, false) => return Judgement::Wrong(Order::Place, place.to_owned()),
                        (Match::Almost(x, y), true) => {
                            almost = Some(format!("the pixel in column {x} of row {y} is another"));
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    almost.map_or(Judgement::Unknown, |how| Judgement::Wrong(Order::Place, how))
}

/// How much of a picture is a reference.
enum Match {
    Whole,
    /// Nine pixels of ten; the first other one.
    Almost(usize, usize),
    No,
}

fn compare(shape: Shape, is_right: impl Fn(usize, usize) -> bool) -> Match {
    let (mut wrong, mut first) = (0, (0, 0));
    let allowed = shape.width * shape.height / 10;
    for y in 0..shape.height {
        for x in 0..shape.width {
            if is_right(x, y) {
                continue;
            }
            if wrong == 0 {
                first = (x, y);
            }
            wrong += 1;
            if wrong > allowed {
                return Match::No;
            }
        }
    }
    if wrong == 0 { Match::Whole } else { Match::Almost(first.0, first.1) }
}

fn gradient(shape: Shape, byte: impl Fn(usize, usize, usize) -> u8) -> Match {
    let along = |at: usize, end: usize| u8::try_from(256 * at / end).unwrap_or(u8::MAX);
    let plain = |x: usize, y: usize, channel: usize| match channel {
        0 => along(x, shape.width),
        1 => along(y, shape.height),
        _ => 0,
    };
    // From the middle, since an edge may be what is wrong.
    let (mid_x, mid_y) = (shape.width / 2, shape.height / 2);
    let add = [0, 1, 2].map(|channel| byte(mid_x, mid_y, channel).wrapping_sub(plain(mid_x, mid_y, channel)));
    compare(shape, |x, y| {
        (0..3).all(|channel| byte(x, y, channel) == plain(x, y, channel).wrapping_add(add[channel]))
    })
}

fn checkerboard(shape: Shape, byte: impl Fn(usize, usize, usize) -> u8) -> Match {
    let (mid_x, mid_y) = (shape.width / 2, shape.height / 2);
    let first = byte(mid_x, mid_y, 0) ^ if (mid_x / 8 + mid_y / 8) % 2 == 0 { 0 } else { 0xFF };
    if ![0, 0xFF].contains(&first) {
        return Match::No;
    }
    compare(shape, |x, y| {
        let right = if (x / 8 + y / 8) % 2 == 0 { first } else { !first };
        (0..3).all(|channel| byte(x, y, channel) == right)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(width: usize, height: usize, channels: usize) -> Vec<Vec<[u8; 4]>> {
        let pixel = |x: usize, y: usize| {
            let along = |at: usize, end: usize| u8::try_from(256 * at / end).unwrap();
            [along(x, width).wrapping_add(7), along(y, height).wrapping_add(250), 9, 255]
        };
        assert!(channels <= 4);
        (0..height).map(|y| (0..width).map(|x| pixel(x, y)).collect()).collect()
    }

    fn bytes(rows: &[Vec<[u8; 4]>], order: &[usize]) -> Vec<u8> {
        rows.iter().flatten().flat_map(|pixel| order.iter().map(|at| pixel[*at])).collect()
    }

    #[test]
    fn a_gradient_shows_every_wrong_order() {
        for (width, height) in [(64, 64), (128, 64)] {
            let judged = |data: &[u8], channels| judge(data, width as u64, height as u64, channels);
            let rows = draw(width, height, 4);
            assert_eq!(
                judged(&bytes(&rows, &[0, 1, 2]), 3),
                Judgement::Right(&[Order::Place, Order::Colour])
            );
            assert_eq!(
                judged(&bytes(&rows, &[0, 1, 2, 3]), 4),
                Judgement::Right(&[Order::Place, Order::Colour])
            );
            let wrong = |data: &[u8], channels, order| {
                assert!(
                    matches!(judged(data, channels), Judgement::Wrong(found, _) if found == order),
                    "{width}×{height}"
                );
            };
            wrong(&bytes(&rows, &[2, 1, 0]), 3, Order::Colour);
            let mut turned = rows.clone();
            turned.reverse();
            wrong(&bytes(&turned, &[0, 1, 2]), 3, Order::Place);
            let mirrored: Vec<Vec<_>> = rows.iter().map(|row| row.iter().rev().copied().collect()).collect();
            wrong(&bytes(&mirrored, &[0, 1, 2]), 3, Order::Place);
            let planes: Vec<u8> = [0, 1, 2].iter().flat_map(|at| bytes(&rows, &[*at])).collect();
            wrong(&planes, 3, Order::Place);
            if width != height {
                let columns: Vec<Vec<_>> =
                    (0..width).map(|x| rows.iter().map(|row| row[x]).collect()).collect();
                wrong(&bytes(&columns, &[0, 1, 2]), 3, Order::Place);
            }
            let mut short = bytes(&rows, &[0, 1, 2]);
            short.resize(width * height * 4, 0);
            wrong(&short, 4, Order::Place);
            wrong(&bytes(&rows, &[3, 0, 1, 2]), 4, Order::Place);
            let mut black = rows.clone();
            black[height - 1].fill([0; 4]);
            wrong(&bytes(&black, &[0, 1, 2]), 3, Order::Place);
            let noise: Vec<u8> =
                (0..width * height * 3).map(|n| u8::try_from(n * n % 251).unwrap()).collect();
            assert_eq!(judged(&noise, 3), Judgement::Unknown);
            assert_eq!(judged(&vec![0; width * height * 3], 3), Judgement::Unknown);
        }
    }

    #[test]
    fn a_checkerboard_shows_columns_and_planes() {
        for inverse in [0, 0xFF] {
            let board: Vec<u8> =
                crate::draft::checkerboard(128, 64, 3).into_iter().map(|byte| byte ^ inverse).collect();
            assert_eq!(judge(&board, 128, 64, 3), Judgement::Right(&[Order::Place]));
        }
        let columns = crate::draft::checkerboard(64, 128, 3);
        assert!(matches!(judge(&columns, 128, 64, 3), Judgement::Wrong(Order::Place, _)));
        let planes = [0; 3].map(|_| crate::draft::checkerboard(128, 64, 1)).concat();
        assert!(matches!(judge(&planes, 128, 64, 3), Judgement::Wrong(Order::Place, _)));
    }
}
