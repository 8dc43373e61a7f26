//! Where the demo's agent and that of `zeblit run` execute: Docker when it answers and has the image, with the words to say so.

use super::DemoSandbox;
use super::screen::{Screen, Style};
use crate::config::{SandboxConfig, SandboxKind};
use anyhow::{Context, bail};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// Until the engine must have answered: it is on this machine.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Building the image from the machine's own packages, slow mirror included.
const BUILD_TIMEOUT: Duration = Duration::from_secs(1200);

/// The label that names the version of Claude Code in an image.
const CLAUDE_LABEL: &str = "zeblit.cli.claude";

const BUILD_SCRIPT: &str = "deploy/agent/build-image.sh";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    Docker,
    Process { why: String },
}

impl Chosen {
    pub fn kind(&self) -> SandboxKind {
        match self {
            Chosen::Docker => SandboxKind::Docker,
            Chosen::Process { .. } => SandboxKind::Process,
        }
    }

    pub fn words(&self, image: &str) -> String {
        match self {
            Chosen::Docker => format!("docker, image {image}: no network, no secrets"),
            Chosen::Process { why } => format!("a plain process without isolation: {why}"),
        }
    }
}

/// Why Docker cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The engine does not answer.
    Engine(String),
    /// The engine answers and has no such image.
    Image,
    /// The image has no Claude Code in it.
    Claude,
}

/// Looks at the engine and the image.
pub async fn docker_lacks(config: &SandboxConfig, with_claude: bool) -> Option<Missing> {
    let look = async {
        let docker = match config.docker_host.strip_prefix("unix://") {
            Some(path) => bollard::Docker::connect_with_unix(
                path,
                ENGINE_TIMEOUT.as_secs(),
                bollard::API_DEFAULT_VERSION,
            ),
            None => bollard::Docker::connect_with_http(
                &config.docker_host,
                ENGINE_TIMEOUT.as_secs(),
                bollard::API_DEFAULT_VERSION,
            ),
        };
        let docker = match docker {
            Ok(docker) => docker,
            Err(error) => return Some(Missing::Engine(error.to_string())),
        };
        // An older engine refuses the newest protocol: ask what it speaks.
        let docker = match docker.negotiate_version().await {
            Ok(docker) => docker,
            Err(error) => return Some(Missing::Engine(error.to_string())),
        };
        match docker.inspect_image(&config.image).await {
            Ok(image) => {
                let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
                let has_claude = labels.get(CLAUDE_LABEL).is_some_and(|version| !version.is_empty());
                (with_claude && !has_claude).then_some(Missing::Claude)
            }
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                Some(Missing::Image)
            }
            Err(error) => Some(Missing::Engine(error.to_string())),
        }
    };
    match tokio::time::timeout(ENGINE_TIMEOUT, look).await {
        Ok(found) => found,
        Err(_) => Some(Missing::Engine(format!("no answer within {} s", ENGINE_TIMEOUT.as_secs()))),
    }
}

/// How to get an engine, for people.
pub fn how_to_get_docker(host: &str, detail: &str) -> String {
    format!(
        "Docker does not answer at {host} ({detail}).\n\
         hint: sudo apt-get install docker.io && sudo systemctl start docker && sudo usermod -aG docker \"$USER\", then log in again"
    )
}

/// Makes the image, when the script is there; else says how.
async fn build<W: Write>(image: &str, with_claude: bool, screen: &mut Screen<W>) -> anyhow::Result<()> {
    let flag = if with_claude { "--with claude " } else { "" };
    let command = format!("{BUILD_SCRIPT} {flag}{image}");
    if !Path::new(BUILD_SCRIPT).is_file() {
        bail!("image `{image}` is not there\nhint: in Zeblit's source folder, run `{command}`");
    }
    screen.line(Style::Dim, &format!("  making the agent image: {command}"));
    let mut build = tokio::process::Command::new(BUILD_SCRIPT);
    if with_claude {
        build.args(["--with", "claude"]);
    }
    let mut child = build.arg(image).kill_on_drop(true).spawn().with_context(|| command.clone())?;
    let status = match tokio::time::timeout(BUILD_TIMEOUT, child.wait()).await {
        Ok(status) => status.with_context(|| command.clone())?,
        Err(_) => bail!("`{command}` did not end within {} s", BUILD_TIMEOUT.as_secs()),
    };
    if !status.success() {
        bail!("`{command}` failed ({status}): its output above says why");
    }
    Ok(())
}

/// Makes sure that Docker can be used; an error says what to do.
pub async fn need_docker<W: Write>(
    config: &SandboxConfig,
    with_claude: bool,
    screen: &mut Screen<W>,
) -> anyhow::Result<()> {
    match docker_lacks(config, with_claude).await {
        None => Ok(()),
        Some(Missing::Engine(detail)) => bail!(how_to_get_docker(&config.docker_host, &detail)),
        Some(Missing::Image | Missing::Claude) => {
            build(&config.image, with_claude, screen).await?;
            match docker_lacks(config, with_claude).await {
                None => Ok(()),
                Some(_) => bail!("image `{}` is still not what is needed after building it", config.image),
            }
        }
    }
}

/// Docker or a process, as asked for and as there is.
pub async fn choose<W: Write>(
    config: &SandboxConfig,
    choice: DemoSandbox,
    with_claude: bool,
    screen: &mut Screen<W>,
) -> anyhow::Result<Chosen> {
    match choice {
        DemoSandbox::Process => {
            Ok(Chosen::Process { why: "you asked for it (--sandbox process)".to_owned() })
        }
        DemoSandbox::Docker => {
            need_docker(config, with_claude, screen).await?;
            Ok(Chosen::Docker)
        }
        DemoSandbox::Auto => match docker_lacks(config, with_claude).await {
            None => Ok(Chosen::Docker),
            Some(Missing::Engine(detail)) => {
                let first = detail.lines().next().unwrap_or_default();
                Ok(Chosen::Process {
                    why: format!("Docker does not answer at {} ({first})", config.docker_host),
                })
            }
            Some(Missing::Image | Missing::Claude) => match build(&config.image, with_claude, screen).await {
                Ok(()) => Ok(Chosen::Docker),
                // With a model there is no way without a container; the recipe can do without.
                Err(error) if with_claude => Err(error),
                Err(error) => Ok(Chosen::Process { why: format!("{error:#}").replace('\n', "; ") }),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_does_not_answer_is_named_with_its_fix() {
        let folder = tempfile::tempdir().unwrap();
        let config = SandboxConfig {
            docker_host: format!("unix://{}/no.sock", folder.path().display()),
            ..SandboxConfig::default()
        };
        let mut screen = Screen::new(Vec::new(), false);
        let chosen = choose(&config, DemoSandbox::Auto, false, &mut screen).await.unwrap();
        assert_eq!(chosen.kind(), SandboxKind::Process);
        assert!(chosen.words("x").contains("Docker does not answer at unix://"), "{chosen:?}");
        let error = choose(&config, DemoSandbox::Docker, false, &mut screen).await.unwrap_err();
        assert!(error.to_string().contains("hint: sudo apt-get install docker.io"), "{error}");
    }
}
