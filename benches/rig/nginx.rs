//! nginx as a plain proxy, as fast as its configuration makes it.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::{cores::Cores, process::Gateway};

/// Debian keeps it where only root looks.
const PROGRAMS: [&str; 2] = ["nginx", "/usr/sbin/nginx"];

/// The program, if this machine has one.
pub fn program() -> Option<&'static str> {
    let works = |program: &&str| {
        let version = Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    PROGRAMS.into_iter().find(works)
}

/// Starts it between `listen` and `provider`: no log, connections kept to both sides, streams passed on as they come, and
/// no body by way of a file.
pub fn nginx(program: &str, cores: Cores, listen: SocketAddr, provider: SocketAddr, folder: &Path) -> Result<Gateway> {
    let root = folder.display();
    let workers = match cores {
        Cores::Pinned => "1",
        Cores::Shared => "auto",
    };
    let config = format!(
        "daemon off; worker_processes {workers}; pid {root}/nginx.pid; error_log {root}/nginx.log;
        events {{ worker_connections 20000; }}
        http {{
            access_log off; keepalive_requests 100000000; client_max_body_size 64m; client_body_buffer_size 16m;
            client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
            uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
            upstream provider {{ server {provider}; keepalive 20000; keepalive_requests 100000000; }}
            server {{
                listen {listen};
                location / {{
                    proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection \"\";
                    proxy_buffering off; proxy_read_timeout 600s;
                }}
            }}
        }}"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config)?;
    let (file, prefix) = (file.display().to_string(), root.to_string());
    Gateway::start(cores.gateway(program.as_ref()), &["-p", &prefix, "-c", &file, "-e", "nginx.log"], folder, listen)
}
