//! Which GPUs CUDA code is made for.

/// The environment variables that choose: Weave's own, and cmake's.
pub(crate) const VARIABLES: &[&str] = &["WEAVE_CUDA_ARCHITECTURES", "CUDAARCHS"];

/// Where nothing says it: code that GPUs from 2020 on (Ampere, Ada) run as it is, and later ones after their
/// driver has translated it once. One architecture, because each takes an hour of one processor.
const DEFAULT: &str = "80";

/// The architectures as a list for cmake: those that a variable names, else those of this machine's GPUs
/// (`gpus` is what `nvidia-smi` says of them: a line like `8.6` for each), else the default.
pub(crate) fn architectures(
    variable: impl Fn(&str) -> Option<String>,
    gpus: Option<&str>,
) -> Result<String, String> {
    let set = |name| Some((name, variable(name).filter(|value| !value.is_empty())?));
    if let Some((name, text)) = VARIABLES.iter().copied().find_map(set) {
        return list(&text).ok_or_else(|| {
            format!(
                "{name} is `{text}`, which is no list of CUDA architectures: say 86 for a GPU of compute capability 8.6, \
                 or 75-real,86-real,90 for several."
            )
        });
    }
    let mut found: Vec<_> =
        gpus.unwrap_or_default().lines().map(|line| line.trim().replace('.', "") + "-real").collect();
    found.sort();
    found.dedup();
    Ok(list(&found.join(";")).unwrap_or_else(|| DEFAULT.to_owned()))
}

/// A list for cmake out of one with commas or semicolons, if it is one.
fn list(text: &str) -> Option<String> {
    let all: Vec<_> = text.split([',', ';']).map(str::trim).collect();
    let is_one = |name: &&str| {
        let number = name.strip_suffix("-real").or_else(|| name.strip_suffix("-virtual")).unwrap_or(name);
        let number = number.strip_suffix(['a', 'f']).unwrap_or(number);
        let is_number = matches!(number.len(), 2 | 3) && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number || ["native", "all", "all-major"].contains(name)
    };
    all.iter().all(is_one).then(|| all.join(";"))
}
