//! The lab's command line; see the library for what it does.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use meshdiff_lab::app::App;
use meshdiff_lab::authz::Authz;
use meshdiff_lab::bootstrap::AUTHZ_PORT;
use meshdiff_lab::cli::{
    AdminArgs, AppArgs, Cli, Command, DownArgs, DriveArgs, Internal, LinkArgs, LoadArgs, ProtocolsArgs, RunArgs,
    ServeArgs, StatusArgs, UpArgs,
};
use meshdiff_lab::client::Pool;
use meshdiff_lab::hop::{Bytes, Caller};
use meshdiff_lab::lifecycle::{self, Raised};
use meshdiff_lab::load::{self, Pace, Plan};
use meshdiff_lab::logbook::Logbook;
use meshdiff_lab::protocols::cases::{self, Place};
use meshdiff_lab::protocols::drive::{Bounds, chosen};
use meshdiff_lab::protocols::server::{Listening, Shared};
use meshdiff_lab::protocols::tls;
use meshdiff_lab::settings::{Settings, Workload};
use meshdiff_lab::signals::{Ending, hearing};
use meshdiff_lab::topology::{LOADGEN, SERVICE_PORT, ServicePort, Topology};
use meshdiff_lab::{forward, netns, ready};

/// How long a command of `run` may take to end once it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Up(args) => up_or_nothing(args),
        Command::Load(args) => load(*args),
        Command::Drive(args) => drive(args),
        Command::Status(args) => status(&args).map(|()| 0),
        Command::Down(args) => down(&args).map(|()| 0),
        Command::Run(args) => run(args),
        Command::Replace(args) => {
            lifecycle::replace(&args.name.name, &args.old, &args.new).map(|()| 0).map_err(Into::into)
        }
        Command::Admin(args) => admin(&args).map(|()| 0),
        Command::Internal(Internal::App(args)) => app(args).map(|()| 0),
        Command::Internal(Internal::Protocols(args)) => protocols(args).map(|()| 0),
        Command::Internal(Internal::Authz(args)) => authz(args).map(|()| 0),
        Command::Internal(Internal::Link(args)) => link(&args).map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("meshdiff-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    eprintln!("lab: {text}");
}

/// `up`, whose half-made lab goes again on Ctrl-C.
fn up_or_nothing(args: UpArgs) -> Result<u8> {
    let ending = Ending::block()?;
    let settings = args.settings()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let noticed = Arc::clone(&interrupted);
    std::thread::spawn(move || {
        ending.wait();
        noticed.store(true, Ordering::Relaxed);
        say("interrupted: taking the lab down again (once more to leave it as it is)");
        ending.wait();
        std::process::exit(130);
    });
    let done = up(&settings);
    if interrupted.load(Ordering::Relaxed) {
        lifecycle::down(&settings.name, false)?;
        return Ok(130);
    }
    done.map(|()| 0)
}

fn up(settings: &Settings) -> Result<()> {
    let binary = std::env::current_exe().context("where this binary is cannot be told")?;
    let (state, raised) = lifecycle::up(settings, &binary, &say)?;
    let what = match raised {
        Raised::AlreadyUp => "was up with these settings; nothing changed",
        Raised::Created => "is up",
        Raised::Recreated => "is up, made anew",
    };
    let mtls = match (settings.mtls, settings.workloads.contains(&Workload::Scenarios)) {
        (true, false) => "mTLS STRICT",
        (true, true) => "mTLS PERMISSIVE",
        (false, _) => "plain text",
    };
    say(&format!(
        "`{}` {what}: {mtls}, access logs to {}, Envoy {}, {}, {}, logs in {}",
        settings.name,
        settings.als,
        state.envoy_version.rsplit('/').nth(3).unwrap_or(&state.envoy_version),
        state.congestion_control,
        state.nat,
        state.logs.display()
    ));
    Ok(())
}

fn down(args: &DownArgs) -> Result<()> {
    let existed = lifecycle::down(&args.name.name, args.keep_logs)?;
    say(&format!("`{}` {}", args.name.name, if existed { "is down" } else { "was not up" }));
    Ok(())
}

fn status(args: &StatusArgs) -> Result<()> {
    let status = meshdiff_lab::status::status(&args.name.name)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    println!(
        "lab {} ({}), access logs to {}, logs in {}",
        status.settings.name,
        if status.ready { "ready" } else { "NOT READY" },
        status.settings.als,
        status.logs.display()
    );
    for pod in &status.pods {
        let processes: Vec<_> = pod
            .processes
            .iter()
            .map(|process| format!("{:?} {}{}", process.role, process.pid, if process.alive { "" } else { " (ended)" }))
            .collect();
        println!(
            "  {:<16} {:<14} netns {} ({})  {}",
            pod.workload,
            pod.ip,
            pod.netns,
            pod.netns_inode.unwrap_or(0),
            processes.join(", ")
        );
    }
    for link in &status.links {
        println!("  {} {}{}", link.name, link.pid, if link.alive { "" } else { " (ended)" });
    }
    Ok(())
}

fn load(args: LoadArgs) -> Result<u8> {
    let ending = Ending::block()?;
    let name = &args.name.name;
    let state = lifecycle::state(name)?;
    lifecycle::check_delays(&state.settings, &args.delays)?;
    let topology = Topology::of(&state.settings);
    let service = topology.service(&args.service).with_context(|| {
        let names: Vec<_> = topology.services.iter().map(|service| service.name).collect();
        format!("there is no service `{}`: the lab has {}", args.service, names.join(", "))
    })?;
    let default_path =
        if args.service == "productpage" { "/productpage".to_owned() } else { format!("/{}/0", args.service) };
    let to = service
        .destination(args.path.as_deref().unwrap_or(&default_path))
        .with_context(|| format!("no pod is behind the service `{}`", args.service))?;
    let logs = args.out.unwrap_or_else(|| state.logs.clone());
    std::fs::create_dir_all(&logs).with_context(|| format!("the folder {} cannot be made", logs.display()))?;
    let (pace, workers) = match (args.rate, args.connections) {
        (Some(rate), _) => (Pace::Rate(rate), args.in_flight),
        (None, Some(connections)) => (Pace::Closed, connections),
        (None, None) => bail!("say --rate or --connections"),
    };
    let plan = Plan {
        pace,
        workers: workers as usize,
        duration: args.duration,
        delays: args.delays,
        mode: args.delay_mode,
        seed: args.seed,
        bytes: Bytes { request: args.request_bytes, response: args.response_bytes },
    };
    let stop = stop_on(ending);
    let log = logs.join("loadgen.ndjson");
    let lab_cpu = || {
        let own = std::process::id() as i32;
        state.processes.iter().map(|p| p.pid).chain([own]).map(meshdiff_lab::process::cpu_time).sum::<Duration>()
    };
    let cpu_before = lab_cpu();
    let mut report = netns::within(&name.namespace(LOADGEN), || -> Result<_> {
        let caller = lifecycle::loadgen(&logs)?;
        Ok(load::run(&plan, &caller, &to, &log, &stop))
    })??;
    let wall = report.end_ns.since(report.start_ns).as_secs_f64();
    report.lab_cpus = (wall > 0.0).then(|| lab_cpu().saturating_sub(cpu_before).as_secs_f64() / wall);
    // The other ends' logs are complete a moment later; whoever reads them next should find them so.
    lifecycle::settle();
    let json = serde_json::to_string_pretty(&report)?;
    println!("{json}");
    std::fs::write(logs.join("load-report.json"), format!("{json}\n")).context("the report cannot be written")?;
    Ok(u8::from(report.ok == 0))
}

/// Sets the flag at the first signal, and ends the process at the second one.
fn stop_on(ending: Ending) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    std::thread::spawn(move || {
        ending.wait();
        asked.store(true, Ordering::Relaxed);
        // The second signal does not wait for answers that are still out.
        ending.wait();
        std::process::exit(130);
    });
    stop
}

fn drive(args: DriveArgs) -> Result<u8> {
    if args.list {
        for case in cases::all() {
            println!("{:<28} {:<10} {}", case.name, case.workload.name(), case.about);
        }
        return Ok(0);
    }
    let ending = Ending::block()?;
    let name = &args.name.name;
    let state = lifecycle::state(name)?;
    let wanted = chosen(&args.cases, &state.settings.workloads).map_err(anyhow::Error::msg)?;
    let Some(place) = Place::of(&state.settings) else {
        bail!(
            "the lab `{name}` runs Bookinfo only: bring it up with --workloads, such as --workloads bodies,http2,grpc"
        );
    };
    let logs = args.out.unwrap_or_else(|| state.logs.clone());
    std::fs::create_dir_all(&logs).with_context(|| format!("the folder {} cannot be made", logs.display()))?;
    let bounds = Bounds { rounds: args.rounds, case_limit: args.case_limit, gap: args.gap };
    // As an application would be: in the pod from its begin, and its libraries too.
    netns::enter(&name.namespace(LOADGEN))?;
    if wanted.iter().any(|case| case.workload == Workload::Tls) {
        tls::Context::client().context("the cases with TLS need libssl")?;
    }
    meshdiff_lab::clock::tighten_timers();
    let stop = stop_on(ending);
    let log = Logbook::open(&logs.join("drive.ndjson")).context("the log cannot be opened")?;
    let reports = meshdiff_lab::protocols::drive::drive(&wanted, bounds, &place, &log, &stop);
    // The other end's log is complete a moment later; whoever reads it next should find it so.
    lifecycle::settle();
    println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "cases": reports }))?);
    Ok(u8::from(reports.iter().any(|report| report.ok < report.exchanges || !report.failures.is_empty())))
}

fn run(args: RunArgs) -> Result<u8> {
    let ending = Ending::block()?;
    let settings = args.up.settings()?;
    let name = settings.name.clone();
    if let Ok(state) = lifecycle::state(&name)
        && state.is_whole()
    {
        bail!("the lab `{name}` is up already: `run` would take it down at the end; give this one another --name");
    }
    let [program, arguments @ ..] = args.command.as_slice() else { bail!("there is no command to run") };
    let command = (|| {
        up(&settings)?;
        let state = lifecycle::state(&name)?;
        let mut command = std::process::Command::new(program);
        command.args(arguments).env("MESHDIFF_LAB_NAME", name.as_str()).env("MESHDIFF_LAB_LOGS", &state.logs);
        let mut child = hearing(&mut command)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.to_string_lossy()))?;
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        std::thread::spawn(move || {
            // The command is told to end, and the lab goes when it has (a Ctrl-C reaches it directly as well). One that
            // does not end, such as a shell that waits for its own child, cannot keep the lab for ever.
            let _ = nix::sys::signal::kill(pid, ending.wait());
            std::thread::sleep(PATIENCE);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        });
        child.wait().context("waiting for the command failed")
    })();
    let down = lifecycle::down(&name, false).context("taking the lab down failed");
    let status = command?;
    down?;
    say(&format!("`{name}` is down"));
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

fn admin(args: &AdminArgs) -> Result<()> {
    let name = &args.name.name;
    let state = lifecycle::state(name)?;
    let topology = Topology::of(&state.settings);
    let pod = topology.pod(&args.pod).with_context(|| {
        let pods: Vec<_> = topology.pods.iter().map(|pod| pod.workload.as_str()).collect();
        format!("there is no pod `{}`: the lab has {}", args.pod, pods.join(", "))
    })?;
    let method = if args.post { "POST" } else { "GET" };
    let (status, body) = ready::admin(&name.namespace(&pod.workload), method, &args.path)?;
    print!("{body}");
    if status != 200 {
        bail!("Envoy answered {status}");
    }
    Ok(())
}

/// Gives root away for good. The log and the socket are open by then.
fn become_user(uid: u32) -> Result<()> {
    let (user, group) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(uid));
    nix::unistd::setgroups(&[]).context("dropping the groups failed")?;
    nix::unistd::setresgid(group, group, group).context("changing the group failed")?;
    nix::unistd::setresuid(user, user, user).context("changing the user failed")?;
    Ok(())
}

fn app(args: AppArgs) -> Result<()> {
    let ending = Ending::block()?;
    let serve = args.serve;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, SERVICE_PORT)).context("the service's port is taken")?;
    let log = Logbook::open(&serve.log)?;
    become_user(serve.uid)?;
    let caller = Caller { pod: serve.workload.clone(), pool: Pool::default(), log: log.clone() };
    let app =
        App { workload: serve.workload, service: serve.service, calls: args.call, parallel: args.parallel, caller };
    let app = Arc::new(app);
    serve_until_signal(&ending, &log, move || app.serve(&listener))
}

fn protocols(args: ProtocolsArgs) -> Result<()> {
    let ending = Ending::block()?;
    let serve = args.serve;
    let listening = Listening::bind(&ServicePort::of(&args.workloads), args.dual_stack, &args.certificates)
        .context("the protocol workloads cannot be served")?;
    let log = Logbook::open(&serve.log)?;
    become_user(serve.uid)?;
    let shared = Arc::new(Shared { workload: serve.workload, log: log.clone() });
    serve_until_signal(&ending, &log, move || listening.serve(&shared))
}

fn authz(args: ServeArgs) -> Result<()> {
    let ending = Ending::block()?;
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, AUTHZ_PORT)).context("the waiting server's port is taken")?;
    let log = Logbook::open(&args.log)?;
    become_user(args.uid)?;
    let authz = Arc::new(Authz { workload: args.workload, service: args.service, log: log.clone() });
    serve_until_signal(&ending, &log, move || authz.serve(&listener))
}

fn serve_until_signal(
    ending: &Ending,
    log: &Logbook,
    serve: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<()> {
    let on_failure = log.clone();
    std::thread::spawn(move || {
        if let Err(error) = serve() {
            eprintln!("serving ended: {error}");
            on_failure.flush_and_exit(1);
        }
    });
    ending.wait();
    log.flush_and_exit(0)
}

fn link(args: &LinkArgs) -> Result<()> {
    let ending = Ending::block()?;
    let [from, to] = args.end.as_slice() else { bail!("a link has two ends") };
    let log = Logbook::open(&args.log)?;
    forward::start([from, to], Duration::from_nanos(args.delay_ns), args.loss_percent, &log)?;
    ending.wait();
    log.flush_and_exit(0)
}
