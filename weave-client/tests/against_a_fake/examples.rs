//! The examples, run.

#[allow(dead_code, reason = "its main is for who runs it")]
#[path = "../../examples/one_image.rs"]
mod one_image;
#[allow(dead_code, reason = "its main is for who runs it")]
#[path = "../../examples/several.rs"]
mod several;

use crate::fake::{Fake, Request, Response, error, in_time, send};

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
        // It asks again once it has heard that.
        requests[3] = Request::read(stream);
        for request in requests.iter().rev() {
            send(stream, &image(request, 3, u8::try_from(request.u64(44)).unwrap()));
            if request.u64(44) == 4 {
                let last = Request::read(stream);
                send(stream, &image(&last, 3, 5));
            }
        }
    });
    let path = fake.path();
    let drawn = in_time(move || {
        let mut drawn = Vec::new();
        several::draw(path.into(), "a cat", 5, |seed, pixels| drawn.push((seed, pixels[0]))).unwrap();
        drawn
    });
    assert_eq!(drawn, [(4, 4), (5, 5), (3, 3), (2, 2), (1, 1)]);
    fake.end();
}
