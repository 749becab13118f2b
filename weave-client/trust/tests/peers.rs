//! Whose server may be told something.

#![cfg(target_os = "linux")]

use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::process::{Uid, getegid, geteuid};
use weave_trust::{Peer, Stranger, check_server, peer};

#[test]
fn ours_and_nobody_elses_unless_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let us = geteuid().as_raw();
    let stream = UnixStream::connect(&path).unwrap();
    assert_eq!(peer(&stream).unwrap(), Peer { uid: us, gid: getegid().as_raw() });
    check_server(&stream, &path, None).unwrap();
    check_server(&stream, &path, Some(4243)).unwrap();
    if !geteuid().is_root() {
        eprintln!("NOT CHECKED: only root can listen as somebody else");
        return;
    }
    // A thread of its own: the kernel notes who listens.
    let listener = thread::spawn(move || {
        let uid = Uid::from_raw(4242);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        listener
    });
    let _listener = listener.join().unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    let stranger = check_server(&stream, &path, None).unwrap_err();
    assert!(matches!(stranger, Stranger::User(4242)));
    assert!(
        stranger.to_string().starts_with("belongs to uid 4242, neither to root nor to uid 0"),
        "{stranger}"
    );
    assert!(check_server(&stream, &path, Some(4243)).is_err());
    check_server(&stream, &path, Some(4242)).unwrap();
}
