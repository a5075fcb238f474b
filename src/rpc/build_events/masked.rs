//! What of an option is shown: no credential, and no value of an environment variable.

/// What the name of something has in it whose value is nobody's business.
const SECRET: [&str; 10] =
    ["header", "credential", "secret", "token", "passw", "auth", "key", "cookie", "cert", "private"];

/// What stands for what is not shown.
const HIDDEN: &str = "…";

/// An option as it may be shown. `--remote_header=authorization=…` and `--action_env=HOME=…` keep the names.
pub(super) fn option(option: &str) -> String {
    if !option.starts_with('-') {
        return HIDDEN.to_owned();
    }
    let Some((name, value)) = option.split_once('=') else { return option.to_owned() };
    let is_environment = name.ends_with("_env");
    match value.split_once('=') {
        Some((key, _)) if is_environment || is_secret(name) || is_secret(key) => {
            format!("{name}={}={HIDDEN}", without_user(key))
        }
        None if is_secret(name) => format!("{name}={HIDDEN}"),
        Some(_) | None => format!("{name}={}", part(value)),
    }
}

/// A value that has a name, as it may be shown.
pub(super) fn value(name: &str, value: &str) -> String {
    if is_secret(name) { HIDDEN.to_owned() } else { part(value) }
}

/// A value in which there may be an address: nothing of it where it has a parameter that is a secret.
fn part(value: &str) -> String {
    let mut parameters = value.split(['?', '&', ',', ';', ' ']).filter_map(|part| part.split_once('='));
    if parameters.any(|(name, _)| is_secret(name)) { HIDDEN.to_owned() } else { without_user(value) }
}

/// `https://user:password@host/` without who it is.
fn without_user(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(['/', ',', ' ', '?', '#']).unwrap_or(part.len());
        let host = part[..end].rfind('@').map_or("", |_| HIDDEN);
        let rest = part[..end].rfind('@').map_or(part, |at| &part[at..]);
        shown.extend(["://", host, rest]);
    }
    shown
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        for (given, shown) in [
            ("--config=remote", "--config=remote"),
            ("--nobuild", "--nobuild"),
            ("--jobs=200", "--jobs=200"),
            ("--copt=-DX=1", "--copt=-DX=1"),
            ("--remote_executor=grpc://farm:50051", "--remote_executor=grpc://farm:50051"),
            ("--remote_executor=grpcs://ada:hunter2@farm/x", "--remote_executor=grpcs://…@farm/x"),
            ("--remote_header=authorization=Bearer hunter2", "--remote_header=authorization=…"),
            ("--bes_header=hunter2", "--bes_header=…"),
            ("--action_env=SOMETHING=hunter2", "--action_env=SOMETHING=…"),
            ("--test_env=HOME", "--test_env=HOME"),
            ("--repo_env=A=https://u:hunter2@h", "--repo_env=A=…"),
            ("--define=api_token=hunter2", "--define=api_token=…"),
            ("--tls_client_key=/home/ada/hunter2.pem", "--tls_client_key=…"),
            ("--distdir=https://h/x?a=b&access_token=hunter2", "--distdir=…"),
            ("--flag=a=1,https://u:hunter2@h/,http://v@w", "--flag=a=1,https://…@h/,http://…@w"),
            ("hunter2", "…"),
            ("-c", "-c"),
            ("", "…"),
        ] {
            assert_eq!(option(given), shown);
        }
        assert_eq!([value("API_KEY", "hunter2"), value("COMMIT", "abc")], ["…", "abc"]);
        assert_eq!(value("REPO", "https://hunter2@git.example/x.git"), "https://…@git.example/x.git");
    }
}
