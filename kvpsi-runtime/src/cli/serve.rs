//! `kvpsi serve`: the OpenAI-compatible server.
//!
//! Owns the flags, and the order of things: the signal is opened with the
//! privilege that it needs, all privileges are dropped, and only then the socket
//! and the model are opened.

mod address;

use super::{
    admin,
    governor::{self, HeldModel},
    otlp, reading,
    run::Signal,
    signals::{self, Ending},
    watermarks, weights,
};
use crate::cli::tell::tell;
use crate::{
    control::{GovernorConfig, Prepared, Tap, Tuning},
    engine::{Speculate, batch::BatchConfig},
    kv::{KvType, Profile, evict::Evict},
    model::{chat::ChatTemplate, default_model, gguf::files, ollama, weights::Weights},
    pressure::{
        SignalError,
        programs::{self, Rung},
    },
    sandbox::{Confinement, Holds, Report, User},
    server::{self, Access, Listeners, ModelThread, Server, Watchers},
    trace::recorder::Background,
    units::Bytes,
};
use anyhow::{Context, bail};
use sd_notify::NotifyState;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::oneshot};

const EXAMPLES: &str = "Examples:
  kvpsi serve                                   the model of `cargo xtask model`, at 127.0.0.1:8080
  kvpsi serve -m model.gguf --parallel 8 --kv-budget 512
  kvpsi serve --host 0.0.0.0 --api-key-file /etc/kvpsi/key
  curl localhost:8080/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'
Then `kvpsi top` shows what it does, and so does a browser at http://127.0.0.1:8080/.";

/// Entries that those who watch may be late by.
const TAP: usize = 1 << 15;
/// How long the model's thread may be silent before the service manager is no
/// longer told that all is well. A step of a large prompt may take seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// Arguments of `kvpsi serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// GGUF file, or ollama:NAME [default: $KVPSI_MODEL, else what `cargo xtask model` fetched]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    weights: weights::Args,
    /// Chat template to use in place of the file's: a file with a Jinja template, or chatml,
    /// llama3, gemma, mistral or deepseek
    #[arg(long, value_name = "FILE|NAME")]
    chat_template: Option<String>,
    /// The name that clients call the model by [default: the file's name]
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Address to listen at; any but loopback wants an API key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = address::host)]
    host: IpAddr,
    /// Port to listen at; 0 takes a free one and says which
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What clients must send as `Authorization: Bearer KEY`; better in a file, or in the
    /// environment: others can read a command line
    #[arg(
        long,
        value_name = "KEY",
        hide_env_values = true,
        env = "KVPSI_API_KEY"
    )]
    api_key: Option<String>,
    /// A file whose first line is the API key
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,
    /// Listen at any address, and answer to any name, without an API key: anyone who reaches it
    /// may use it
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    admin: admin::Args,
    #[command(flatten)]
    otlp: otlp::Args,
    /// Requests computed together
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    parallel: u16,
    /// Requests that may wait beyond those; more are told to come again (429)
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: u16,
    /// Tokens that a prompt and its answer may have together [default: the model's, up to 8192]
    #[arg(long, value_name = "TOKENS")]
    ctx: Option<usize>,
    /// Tokens of a prompt [default: what --ctx has room for]
    #[arg(long, value_name = "TOKENS")]
    max_prompt: Option<usize>,
    /// Bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    max_body: usize,
    /// Connections at once; beyond them a new one takes the place of an idle one
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_connections: u16,
    /// Seconds for the head of a request, for its body, and for a client to read what is sent
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    client_timeout: u32,
    /// Seconds for an answer, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    request_timeout: u32,
    /// Seconds that answers may take to end when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u32,
    /// How keys and values are written at first: q8_0 takes half the memory of f16, q4_0 a quarter
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    kv_type: KvType,
    /// What may be lost to return memory
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Which tokens go first where some must
    #[arg(long, value_enum, default_value_t)]
    evict: Evict,
    /// Tokens below which no request's cache goes, but all at once
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    kv_floor: usize,
    /// Most memory of keys and values, in MiB [default: all of --parallel times --ctx]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    kv_budget: Option<u32>,
    /// Guess next tokens from words that prompt and answer repeat, and check several at once where
    /// that is faster; the text is the same
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    speculate: Speculate,
    /// Record pressure, cache and trims to this file, for `kvpsi replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Threads to compute with [default: $RAYON_NUM_THREADS, else one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// The source of memory pressure events
    #[arg(long, value_enum, default_value = "auto")]
    signal: Signal,
    /// How far up the ladder eBPF goes
    #[arg(long, value_enum, default_value_t = Rung::Auto)]
    rung: Rung,
    /// Stalled milliseconds a second at one of our limits from which text may go, whatever page
    /// cache there is; without it stall time alone costs no text
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    stall_limit: Option<u64>,
    /// User to work for once the programs are attached, `NAME[:GROUP]` or `UID[:GID]`
    #[arg(long, value_name = "USER")]
    user: Option<User>,
    /// Hold files and network down to what is needed, by Landlock, where the kernel has it
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    landlock: bool,
    /// Refuse system calls that a server never makes, by seccomp, where the kernel has it
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    seccomp: bool,
    /// Let the kernel measure what the eBPF programs cost, for /metrics; needs CAP_SYS_ADMIN
    #[arg(long)]
    probe_cost: bool,
    /// Have kswapd wake earlier while this runs (vm.watermark_scale_factor), where `kvpsi doctor`
    /// advises it; needs root
    #[arg(long)]
    tune_watermarks: bool,
}

/// Runs the command until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// The model, the address or a setting cannot be used.
pub fn run(args: Args) -> anyhow::Result<()> {
    server::share_one_arena();
    let path = default_model::named(args.model.as_deref())?;
    let mut config = args.server_config(&path)?;
    let template = args.chat_template.as_deref();
    let template = template.map(ChatTemplate::source_of).transpose()?;
    let held = HeldModel::open(&path);
    let user = args.user.as_ref().map(|user| user.ids().uid);
    let weights = args.weights.hold(&path, &held, user);
    let watchers = Watchers::default();
    let kept = governor::Kept::open(args.record.as_deref())?;
    let tap = kept
        .as_ref()
        .map_or_else(|| Arc::new(Tap::new(TAP)), governor::Kept::tap);
    // The kernel measures as long as this is open.
    let _measured = args
        .probe_cost
        .then(programs::enable_statistics)
        .transpose()
        .context("--probe-cost")?;
    let _tuned = args
        .tune_watermarks
        .then(watermarks::tune)
        .transpose()
        .context("--tune-watermarks")?;
    args.admin.clear_socket()?;
    let confinement = args.confinement(&path, weights.as_ref());
    let prepared = listen(&args, &confinement, &tap)?;
    let socket = address::bind(SocketAddr::new(args.host, args.port))?;
    let address = socket.local_addr()?;
    let admin = args.admin.listen()?;
    let exporting = args.otlp.start()?;
    config.spans = exporting.sink();

    let server = Server::new(config, watchers.clone())?;
    let mut engine = held.config();
    let unfinished = weights.clone();
    engine.weights = weights;
    engine.chat_template = template;
    engine.context = args.ctx;
    engine.kv_type = args.kv_type;
    engine.profile = args.profile;
    engine.evict = args.evict;
    engine.floor_tokens = args.kv_floor;
    engine.speculate = args.speculate;
    engine.kv_budget = args.kv_budget.map(|mib| Bytes::mib(u64::from(mib)));
    engine.parallel = usize::from(args.parallel);
    engine.max_sequences = engine.parallel + 2;
    let batch = BatchConfig {
        parallel: engine.parallel,
        ..BatchConfig::default()
    };
    let ready = server.clone();
    let load = move || -> anyhow::Result<Model> {
        let asked = engine.context;
        let engine = reading::engine(&engine)?;
        if let Some(why) = reading::no_chat(&engine, asked) {
            tell!("{why}; every chat will be refused, completions can be answered");
        }
        let signal = prepared.as_ref().map_or("none", Prepared::signal);
        let mut sinks = vec![watchers.sink()];
        if let Some(kept) = kept {
            sinks.push(kept.sink(signal).context("cannot write the recording")?);
        }
        let watching = Background::start(sinks, tap, engine.pool())?;
        let governor = prepared.map(|p| p.start(engine.ladder())).transpose()?;
        let (thread, loaded) = ModelThread::start(engine, batch, governor)?;
        ready.ready(loaded);
        Ok(Model {
            _thread: thread,
            _watching: watching,
        })
    };
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.worker_threads(2);
    let runtime = signals::runtime(threads)?;
    let ended = runtime.block_on(serve(server, (socket, admin), address, load));
    // A template that does not end is not waited for.
    runtime.shutdown_background();
    if let Some(weights) = unfinished {
        weights.abandon();
    }
    exporting.end();
    ended
}

/// What ends with the server: the model's thread first.
struct Model {
    _thread: ModelThread,
    _watching: Background,
}

async fn serve(
    server: Arc<Server>,
    (socket, admin): (std::net::TcpListener, Option<admin::Socket>),
    address: SocketAddr,
    load: impl FnOnce() -> anyhow::Result<Model> + Send + 'static,
) -> anyhow::Result<()> {
    let listeners = Listeners {
        tcp: TcpListener::from_std(socket).context("cannot listen")?,
        admin: admin.as_ref().map(admin::Socket::listener).transpose()?,
    };
    let mut ending = Ending::listen()?;
    let (failed, failure) = oneshot::channel();
    let (model, loaded) = std::sync::mpsc::channel();
    // Its own thread: a thread of the runtime's would be waited for at the end.
    std::thread::Builder::new()
        .name("kvpsi-load".into())
        .spawn(move || match load() {
            Ok(m) => {
                tell!("serving at http://{address}/");
                // Without a service manager there is none to notify.
                let _ = sd_notify::notify(&[NotifyState::Ready]);
                let _ = model.send(m);
            }
            Err(e) => {
                let _ = failed.send(e);
            }
        })
        .context("cannot start a thread")?;
    tokio::spawn(server.clone().watch());
    tokio::spawn(life(server.clone()));
    let mut broken = None;
    let stop = async {
        tokio::select! {
            Ok(e) = failure => broken = Some(e),
            _ = ending.next() => {}
        }
        if broken.is_none() {
            tell!(
                "stopping once the answers that have begun are whole (--drain); a second signal ends it at once"
            );
        }
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        // A second signal does not wait.
        tokio::spawn(async move {
            ending.next().await;
            std::process::exit(130);
        });
    };
    server.serve(listeners, stop, move || drop(loaded)).await;
    broken.map_or(Ok(()), Err)
}

/// Tells a service manager that all is well, as long as it is.
async fn life(server: Arc<Server>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut tick = tokio::time::interval(limit / 3);
    loop {
        tick.tick().await;
        let well = (server.live()).is_none_or(|live| live.loaded.silent_for() < SILENCE);
        if well {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        }
    }
}

/// Opens the signal and drops privileges; `None` for `--signal none`, and
/// where the service manager turned watching off.
fn listen(
    args: &Args,
    confinement: &Confinement,
    tap: &Arc<Tap>,
) -> anyhow::Result<Option<Prepared>> {
    let Some(choice) = args.signal.choice() else {
        let report = confinement.confine().context("cannot drop privileges")?;
        tell(&report);
        return Ok(None);
    };
    let config = GovernorConfig {
        tap: Some(tap.clone()),
        tuning: Tuning {
            stall_time: args
                .stall_limit
                .map_or(Duration::MAX, Duration::from_millis),
            ..Tuning::default()
        },
        ..GovernorConfig::default()
    };
    match governor::listen_confined(choice, args.rung, config, confinement) {
        Ok((listening, report)) => {
            tell(&report);
            for note in &listening.notes {
                tell!("signal {}: {note}", listening.prepared.signal());
            }
            Ok(Some(listening.prepared))
        }
        Err(e) if matches!(e.downcast_ref(), Some(SignalError::Unwanted)) => {
            tell!("nothing will be trimmed: {e}");
            let report = confinement.confine().context("cannot drop privileges")?;
            tell(&report);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// What a user would miss; all of it in the log.
fn tell(report: &Report) {
    for (name, part) in report.parts() {
        if matches!(part.holds, Holds::No) {
            tell!("{name}: {part}");
        } else {
            tracing::info!("{name}: {part}");
        }
    }
}

impl Args {
    fn confinement(&self, model: &Path, weights: Option<&Weights>) -> Confinement {
        // The next file of a recording is made beside the first.
        let folder = |f: &Path| {
            let parent = f.parent().filter(|p| !p.as_os_str().is_empty());
            parent.unwrap_or(Path::new(".")).to_path_buf()
        };
        let mut confinement = Confinement {
            user: self.user.clone(),
            read: files::parts(model).unwrap_or_else(|_| vec![model.to_path_buf()]),
            write: (self.record.iter().map(|f| folder(f)))
                .chain(weights.and_then(Weights::to_write).map(Path::to_path_buf))
                .collect(),
            sockets: self.admin.socket_path().map(folder).into_iter().collect(),
            port: Some(self.port),
            landlock: self.landlock,
            seccomp: self.seccomp,
            ..Confinement::default()
        };
        self.otlp.allow(&mut confinement);
        confinement
    }

    fn server_config(&self, model: &Path) -> anyhow::Result<server::Config> {
        let api_key = self.key()?;
        if api_key.is_none() && !self.host.is_loopback() && !self.insecure {
            bail!(
                "--host {}: other machines could use this server; set --api-key-file or KVPSI_API_KEY, or say --insecure",
                self.host
            );
        }
        let file_name = || {
            // In Ollama's store the file's name is a hash.
            let given = self.model.as_deref().and_then(Path::to_str);
            if let Some(name) = given.and_then(|m| m.strip_prefix(ollama::PREFIX)) {
                return name.to_owned();
            }
            let stem = model.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        };
        let client = Duration::from_secs(u64::from(self.client_timeout));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(server::Config {
            name: self.alias.clone().unwrap_or_else(file_name),
            access: Access {
                api_key,
                admin_key: self.admin.key()?,
                admin_socket: self.admin.has_socket(),
                loopback: self.host.is_loopback(),
                hosts: self.admin.allowed_host.clone(),
                any_host: self.insecure,
                origins: self.admin.cors_origin.clone(),
            },
            tokenizers: (threads / 2).max(1),
            max_body: self.max_body,
            max_prompt: self.max_prompt,
            max_connections: usize::from(self.max_connections.max(1)),
            header_timeout: client,
            body_timeout: client,
            request_timeout: Duration::from_secs(u64::from(self.request_timeout)),
            permits: usize::from(self.parallel) + usize::from(self.queue),
            drain: Duration::from_secs(u64::from(self.drain)),
            spans: None,
        })
    }

    fn key(&self) -> anyhow::Result<Option<String>> {
        admin::secret(
            "API key",
            self.api_key.as_deref(),
            ("--api-key-file", self.api_key_file.as_deref()),
        )
    }
}
