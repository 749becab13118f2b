//! What the terminal at standard output says of itself.

#[cfg(unix)]
pub(crate) use unix::{ask, size};

/// Whether the terminal knows no control sequences, or nobody says which terminal it is.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Nobody is asked: what a terminal of this system would need for that is not here.
#[cfg(not(unix))]
pub(crate) const fn ask() -> Option<Vec<u8>> {
    None
}

#[cfg(not(unix))]
pub(crate) const fn size() -> Option<[u16; 4]> {
    None
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::getpgrp;
    use rustix::termios::{
        LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
    };

    /// How long a terminal may take to say what it is. One at the other end of the world needs most of it.
    const PATIENCE: Duration = Duration::from_millis(800);

    /// "Do you know kitty's graphics?", with an image of one pixel that is not shown, then "What are you?",
    /// which every terminal answers. So the second answer is the end of all there will be.
    const QUESTION: &[u8] = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c";

    /// Asks the terminal. `None`: there is none to be asked, or it says nothing.
    pub(crate) fn ask() -> Option<Vec<u8>> {
        // A terminal is there to be read from as well, unless it was opened for writing alone.
        let mut terminal = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
        // Whoever runs in the background would be stopped for it.
        if tcgetpgrp(&terminal).is_ok_and(|group| group != getpgrp()) {
            return None;
        }
        let before = tcgetattr(&terminal).ok()?;
        let mut quiet = before.clone();
        // The answer comes as if somebody typed it: at once, unseen, and Ctrl-C as a byte, since a signal
        // would leave the terminal like this.
        quiet.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        quiet.special_codes[SpecialCodeIndex::VMIN] = 0;
        tcsetattr(&terminal, OptionalActions::Now, &quiet).ok()?;
        let answer = terminal.write_all(QUESTION).ok().map(|()| listen(&mut terminal));
        // If the terminal is gone there is nothing to restore.
        let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
        let answer = answer?;
        if answer.contains(&3) {
            std::process::exit(130);
        }
        Some(answer).filter(|answer| !answer.is_empty())
    }

    /// Reads until the terminal has said what it is.
    fn listen(terminal: &mut File) -> Vec<u8> {
        let (until, mut answer) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else { return answer };
            let ready = poll(&mut [PollFd::new(&*terminal, PollFlags::IN)], Some(&timeout));
            let mut bytes = [0; 256];
            match ready {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1..) => match terminal.read(&mut bytes) {
                    Ok(count) if count > 0 => answer.extend(bytes.iter().take(count)),
                    _ => return answer,
                },
                _ => return answer,
            }
            let said = answer.windows(3).rposition(|bytes| bytes == b"\x1b[?");
            if answer.contains(&3) || said.is_some_and(|at| answer[at..].contains(&b'c')) {
                return answer;
            }
        }
    }

    /// Columns, rows, and pixels of all of it: width and height. What it doesn't know is 0.
    pub(crate) fn size() -> Option<[u16; 4]> {
        let size = tcgetwinsize(io::stdout()).ok()?;
        Some([size.ws_col, size.ws_row, size.ws_xpixel, size.ws_ypixel])
    }
}
