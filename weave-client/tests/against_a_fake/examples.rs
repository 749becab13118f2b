//! The examples, run.

#[allow(dead_code, reason = "its main is for who runs it")]
#[path = "../../examples/one_image.rs"]
mod one_image;
#[allow(dead_code, reason = "its main is for who runs it")]
#[path = "../../examples/several.rs"]
mod several;

use std::os::unix::net::UnixStream;

use crate::fake::{Fake, Request, Response, error, in_time, says_nothing, send};

fn image(request: &Request, channels: u32, fill: u8) -> Vec<u8> {
    let pixels = vec![fill; 512 * 512 * channels as usize];
    Response { width: 512, height: 512, channels, pixels, ..Response::good(request.id()) }.bytes()
}

#[test]
fn one_image_becomes_a_ppm() {
    for channels in [3, 4] {
        let fake = Fake::serving(move |stream, request| send(stream, &image(&request, channels, 9)));
        let mut ppm = Vec::new();
        one_image::draw(fake.path().into(), "a cat", &mut ppm).unwrap();
        assert_eq!(ppm, [b"P6 512 512 255\n".as_slice(), &[9; 512 * 512 * 3]].concat());
        fake.end();
    }
}

#[test]
fn several_images_and_one_that_has_to_wait() {
    let fake = Fake::serving(|stream, first| {
        let mut requests = vec![first];
        requests.extend((1..4).map(|_| Request::read(stream)));
        send(stream, &error(requests[3].id(), 500, 23, "the queue is full"));
        says_nothing(stream);
        let answer = |request: &Request, stream: &mut UnixStream| {
            send(stream, &image(request, 3, u8::try_from(request.u64(44)).unwrap()));
        };
        answer(&requests[2], stream);
        // It asks again when there is room, and goes on.
        let again = Request::read(stream);
        answer(&requests[1], stream);
        let last = Request::read(stream);
        for request in [&last, &again, &requests[0]] {
            answer(request, stream);
        }
    });
    let path = fake.path();
    let drawn = in_time(move || {
        let mut drawn = Vec::new();
        several::draw(path.into(), "a cat", 5, |seed, pixels| drawn.push((seed, pixels[0]))).unwrap();
        drawn
    });
    assert_eq!(drawn, [(3, 3), (2, 2), (5, 5), (4, 4), (1, 1)]);
    fake.end();
}
