//! README's first server passes the case that README names.

use std::process::Command;

#[test]
fn the_first_server_passes_its_case() {
    let readme = include_str!("../README.md");
    let program =
        readme.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a program");
    let filter = readme.split("--filter ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a case");
    let path =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("readme-{}.py", std::process::id()));
    std::fs::write(&path, program).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_weave-conform"))
        .args(["server", "--filter", filter, "--exec", &format!("python3 {} {{address}}", path.display())])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 pass"), "{said}");
}
