//! The configuration from real files: which file is taken, and what `check` says and exits with.

use std::{fs, path::Path, process::ExitCode};

use mlx_manager::cli::check::{CheckOptions, run};
use mlx_manager_config::{Environment, LoadOptions, Loaded, Problems, load};

fn options(environment: Environment) -> LoadOptions {
    LoadOptions { environment, ..LoadOptions::default() }
}

fn write(path: &Path, port: u16) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("server.listen = \"127.0.0.1:{port}\"\n")).unwrap();
}

fn port(loaded: &Result<Loaded, Problems>) -> u16 {
    loaded.as_ref().unwrap_or_else(|problems| panic!("{problems}")).config.server.listen.port()
}

fn check(loaded: &Result<Loaded, Problems>, show: bool) -> (String, String, ExitCode) {
    let (mut results, mut talk) = (Vec::new(), Vec::new());
    let code = run(loaded, CheckOptions { show, color: false }, &mut results, &mut talk).unwrap();
    (String::from_utf8(results).unwrap(), String::from_utf8(talk).unwrap(), code)
}

#[test]
fn the_nearest_file_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let cwd = root.path().join("cwd");
    fs::create_dir(&cwd).unwrap();
    let mut environment = Environment::new(&cwd);
    environment.home = Some(root.path().join("home"));
    assert_eq!(port(&load(&options(environment.clone()))), 10242);
    environment.macos = true;
    write(&root.path().join("home/Library/Application Support/mlx-manager/config.toml"), 1);
    assert_eq!(port(&load(&options(environment.clone()))), 1);
    write(&root.path().join("home/.config/mlx-manager/config.toml"), 2);
    assert_eq!(port(&load(&options(environment.clone()))), 2);
    write(&root.path().join("xdg/mlx-manager/config.toml"), 3);
    environment = environment.with("XDG_CONFIG_HOME", root.path().join("xdg").to_str().unwrap());
    assert_eq!(port(&load(&options(environment.clone()))), 3);
    write(&cwd.join("config.toml"), 4);
    assert_eq!(port(&load(&options(environment.clone()))), 4);
    write(&root.path().join("named.toml"), 5);
    environment = environment.with("MLX_MANAGER_CONFIG", "../named.toml");
    assert_eq!(port(&load(&options(environment.clone()))), 5);
    write(&cwd.join("given.toml"), 6);
    let given = LoadOptions { config: Some("given.toml".into()), ..options(environment) };
    assert_eq!(port(&load(&given)), 6);
}

#[test]
fn a_named_file_has_to_be_there() {
    let root = tempfile::tempdir().unwrap();
    let loaded = load(&options(Environment::new(root.path()).with("MLX_MANAGER_CONFIG", "gone.toml")));
    let (results, talk, code) = check(&loaded, false);
    assert!(results.is_empty() && talk.contains("gone.toml` can't be read"), "{talk}");
    assert_eq!(code, ExitCode::from(2));
    fs::write(root.path().join("config.toml"), b"a = 1\nb = \"\xff\"").unwrap();
    let problems = load(&options(Environment::new(root.path()))).unwrap_err();
    assert!(problems.to_string().contains("isn't UTF-8, first at line 2"), "{problems}");
}

#[test]
fn check_says_what_is_wrong_and_what_is_in_effect() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("config.toml");
    fs::write(&file, "[server]\nlisten = 1\n[trace]\n").unwrap();
    let environment = Environment::new(root.path()).with("OPENAI_API_KEY", "sk-hidden");
    let (results, talk, code) = check(&load(&options(environment.clone())), true);
    assert!(results.is_empty());
    assert!(talk.contains("config.toml:2:10") && talk.contains("config.toml:3:2"), "{talk}");
    assert!(talk.contains("did you mean `traces`?") && talk.ends_with("2 problems in config.toml\n"), "{talk}");
    assert_eq!(code, ExitCode::from(2));

    fs::write(&file, "[local]\ndefault_model = \"elsewhere\"\n").unwrap();
    let (results, talk, code) = check(&load(&options(environment)), true);
    assert!(results.contains("local.default_model = \"elsewhere\"  # config.toml:2\n"), "{results}");
    assert!(results.contains("providers[0].api_key = \"***\"  # default via ${OPENAI_API_KEY}\n"), "{results}");
    assert!(!results.contains("sk-hidden"));
    assert!(talk.contains("warning: `local.default_model`") && talk.ends_with("1 warning in config.toml\n"), "{talk}");
    assert_eq!(code, ExitCode::SUCCESS);
}
