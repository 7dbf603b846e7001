"""What differs between clouds: options, kinds of TPU, commands.  launch/cloud.py reads this."""

from __future__ import annotations

from typing import NamedTuple

# ------------------------------------------------------------------------------------------ options

# NAME! must be given, NAME=X has a default, NAME... may be repeated.
SLICE = """
    name! zone! project! create accelerator nfs ref=HEAD logs worker=0 stop-run delete
    create-option... ssh-option...
"""
LAUNCHERS = {
    "tpu_vm": (
        "Train on all workers of a Cloud TPU slice, a queued resource.",
        f"{SLICE} runtime spot",
    ),
    "compute_engine": (
        "Train on all VMs of a TPU slice of Compute Engine, a managed instance group.",
        f"{SLICE} topology spot flex-start max-run-duration reservation",
    ),
    "gke_xpk": (
        "Train on a TPU slice of a GKE cluster that xpk has made: a pod on each host.",
        """
        cluster! workload! tpu-type! project zone base-docker-image docker-image ref max-restarts=50
        xpk-option...
        """,
    ),
    "slurm": (
        "Train on GPUs of a SLURM cluster, whose nodes see this checkout: a process for each GPU.",
        """
        nodes=1 gpus-per-node=8 name=psynth time save-before=300 container mount... sbatch-option...
        """,
    ),
}
EXCLUDE = [("logs", "stop_run", "delete"), ("spot", "flex_start", "reservation")]

HELP = {  # a key with a launcher in it is for that one alone
    "accelerator": "type of the slice to create",
    "base-docker-image": "has Python 3.11 or newer, and gets the commit; python:3.12 if not given",
    "cluster": "name of the cluster",
    "container": "image with psynth on its PATH, run by pyxis; nothing is installed here",
    "create": "create the slice first, and wait until it is there",
    "create-option": "another option of gcloud for what is created; may be repeated",
    "delete": "delete the slice",
    "docker-image": "used as it is: its working directory is a checkout after setup.sh tpu",
    "dry-run": "print the commands, quoted for a shell, and run none",
    "flex-start": "queue for capacity; --max-run-duration says how long to have it",
    "gpus-per-node": "GPUs of a node, 8 if not given",
    "slurm name": "name of the job, psynth if not given; its output goes to NAME-JOBID.log",
    "logs": "follow what worker 0 prints, or --worker",
    "max-restarts": "how often the job may be restarted, 50 if not given",
    "max-run-duration": "with --flex-start: time until the slice is deleted, 7d at most",
    "mount": "folder that the container sees under the same path; may be repeated",
    "name": "name of the slice",
    "nfs": "share to mount at /mnt/shared on every worker",
    "nodes": "number of nodes, 1 if not given",
    "project": "project at Google",
    "ref": "commit to train with, HEAD if not given",
    "reservation": "use the capacity of this reservation",
    "runtime": "software of the slice, if not the one that Google names for its type",
    "save-before": "seconds before --time is over at which training saves, 300 if not given",
    "sbatch-option": "another option of sbatch; may be repeated",
    "spot": "cheaper, and taken away when Google needs it",
    "ssh-option": "another option of gcloud's ssh and scp; may be repeated",
    "stop-run": "have training save and end, and wait until it has",
    "time": "limit of one stay on the nodes",
    "topology": "layout of the chips, if not the usual one",
    "tpu-type": "type of the slice",
    "worker": "number of a worker",
    "workload": "name of the workload",
    "xpk-option": "another option of xpk workload create; may be repeated",
    "zone": "zone at Google",
}

COUNT, XPK_NAME = r"[1-9]\d*", r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
FORMS = {  # what a value looks like: an example, a regular expression; other options are flags
    "accelerator": ("v5e-16", r"(v\d[a-z]*|tpu7x)-\d+"),
    "base-docker-image": ("python:3.12", r"[a-z0-9][-\w./:@]*"),
    "cluster": ("my-cluster", XPK_NAME),
    "container": ("nvcr.io/my/psynth:1", r"[-\w./:@#+]+"),
    "create-option": ("--network=n", ".+"),
    "docker-image": ("us-docker.pkg.dev/my-project/images/psynth:1", r"[a-z0-9][-\w./:@]*"),
    "gpus-per-node": ("8", COUNT),
    "slurm name": ("psynth", r"[A-Za-z0-9][-\w.]*"),
    "max-restarts": ("50", r"\d+"),
    "max-run-duration": ("12h", r"(\d+[smhd])+"),
    "mount": ("/mnt/shared", "/[^,:]*"),
    "name": ("my-slice", r"[a-z]([-a-z0-9]{0,56}[a-z0-9])?"),  # the name of a VM is longer by 5
    "nfs": ("10.0.0.2:/share", r"[A-Za-z0-9.-]+:/[-\w./]*"),
    "nodes": ("2", COUNT),
    "project": ("my-project", r"[a-z][-a-z0-9.:]*[a-z0-9]"),
    "ref": ("HEAD", r"[^-].*"),
    "reservation": ("my-reservation", r"[a-z][-a-z0-9/]*"),
    "runtime": ("v2-alpha-tpuv5-lite", r"[a-z][-a-z0-9.]*"),
    "save-before": ("300", COUNT),
    "sbatch-option": ("--partition=gpu", ".+"),
    "ssh-option": ("--internal-ip", ".+"),
    "time": ("12:00:00", r"\d+(-\d+)?(:\d+){0,2}"),
    "topology": ("4x4", r"\d+(x\d+){1,2}"),
    "tpu-type": ("v5e-16", r"[a-z0-9]+-\d+(x\d+)*"),
    "worker": ("3", r"\d+"),
    "workload": ("my-run", XPK_NAME),
    "xpk-option": ("--priority=high", ".+"),
    "zone": ("us-west4-a", r"[a-z]+-[a-z]+\d+-[a-z]\w*"),
}

# --------------------------------------------------------------------------------------------- TPUs


class Kind(NamedTuple):
    """What Google has for a kind of TPU.  None: that API does not offer it."""

    cores: int  # what the number in an accelerator type counts for each chip
    axes: int  # dimensions of a slice
    runtime: str | None = None  # software of the Cloud TPU API
    machine_type: str | None = None  # of Compute Engine, with HOST_CHIPS chips
    image_family: str | None = None


HOST_CHIPS = 4
UBUNTU_22 = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
UBUNTU_24 = "ubuntu-accel-2404-amd64-tpu-tpu7x"
KINDS = {
    "v2": Kind(2, 2, "tpu-ubuntu2204-base"),
    "v3": Kind(2, 2, "tpu-ubuntu2204-base"),
    "v4": Kind(2, 3, "tpu-ubuntu2204-base"),
    "v5e": Kind(1, 2, "v2-alpha-tpuv5-lite"),
    "v5p": Kind(2, 3, "v2-alpha-tpuv5", "ct5p-hightpu-4t", UBUNTU_22),
    "v6e": Kind(1, 2, "v2-alpha-tpuv6e", "ct6e-standard-4t", UBUNTU_22),
    "tpu7x": Kind(2, 3, None, "tpu7x-standard-4t", UBUNTU_24),
}

# ----------------------------------------------------------------------------------------- commands

# A blank line ends a command.  {x} is the value of --x, or one that launch/cloud.py adds; a word is
# left out if its value is missing.  *x stands for the words of a list.

PLACES = {
    "where": "--zone={zone} --project={project}",
    "in_region": "--region={region} --project={project}",
}

CAPACITY = {  # what a template of Compute Engine says, by the option that asks for it
    "": "--provisioning-model=STANDARD",
    "spot": "--provisioning-model=SPOT --instance-termination-action=STOP",
    "flex_start": """
        --provisioning-model=FLEX_START --reservation-affinity=none
        --max-run-duration={max_run_duration} --instance-termination-action=DELETE
    """,
    "reservation": """
        --provisioning-model=RESERVATION_BOUND --reservation-affinity=specific
        --reservation={reservation} --instance-termination-action=DELETE
    """,
}

SLICES = {
    "tpu_vm": {
        "create": """
            gcloud compute tpus queued-resources create {name} *where --node-id={name}
            --accelerator-type={googles} --runtime-version={runtime} *spot_option *create_option
        """,
        "state": """
            gcloud compute tpus queued-resources describe {name} *where --format=value(state.state)
        """,
        "ssh": """
            gcloud compute tpus tpu-vm ssh {name} *where --worker={vm} --command={command}
            *ssh_option
        """,
        "scp": """
            gcloud compute tpus tpu-vm scp {archive} {name}:psynth_jax.tar.gz *where --worker={vm}
            *ssh_option
        """,
        "delete": """
            gcloud compute tpus queued-resources delete {name} *where --force
        """,
    },
    # In bulk: all VMs or none.  One that fails is not repaired: it would be outside of the slice.
    "compute_engine": {
        "create": """
            gcloud compute resource-policies create workload-policy {name} *in_region
            --type=HIGH_THROUGHPUT --accelerator-topology={topology}
            --accelerator-topology-mode=AUTO_CONNECT

            gcloud compute instance-templates create {name} --instance-template-region={region}
            --project={project} --machine-type={machine_type} --maintenance-policy=TERMINATE
            --image-project=ubuntu-os-accelerator-images --image-family={image_family}
            --boot-disk-size=200GB --scopes=cloud-platform *capacity *create_option

            gcloud compute instance-groups managed create {name} *where --size=0
            --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing
            --template=projects/{project}/regions/{region}/instanceTemplates/{name}
            --workload-policy=projects/{project}/regions/{region}/resourcePolicies/{name}

            gcloud compute instance-groups managed resize {name} *where --size={hosts}

            gcloud compute instance-groups managed wait-until {name} *where --stable
        """,
        "vms": """
            gcloud compute instance-groups managed list-instances {name} *where
            --format=value(instance.basename(),instanceStatus)
        """,
        "ssh": """
            gcloud compute ssh {vm} *where --command={command} *ssh_option
        """,
        "scp": """
            gcloud compute scp {archive} {vm}:psynth_jax.tar.gz *where *ssh_option
        """,
        "delete": """
            gcloud compute instance-groups managed delete {name} *where --quiet

            gcloud compute instance-templates delete {name} *in_region --quiet

            gcloud compute resource-policies delete {name} *in_region --quiet
        """,
    },
}

PACK = """
    mkdir -p {root}/.launch

    git -C {root} archive --format=tar.gz --output={archive} {ref}
"""
STOP = """
if [ -e psynth_jax/launch/tpu_worker.sh ]; then bash psynth_jax/launch/tpu_worker.sh stop; fi
""".strip()
# The package is removed first, so that no file of another commit stays.  Runs are kept.
UNPACK = """
mkdir -p psynth_jax && cd psynth_jax && rm -rf psynth_jax && tar -xzf ../psynth_jax.tar.gz
""".strip()

STAGE = """
    rm -rf {stage}

    mkdir -p {stage}

    git -C {root} archive --format=tar.gz --output={stage}.tar.gz {ref}

    tar -xzf {stage}.tar.gz -C {stage}
"""
XPK = """
    xpk workload create --cluster={cluster} --workload={workload} --tpu-type={googles}
    --project={project} --zone={zone} --max-restarts={max_restarts}
    --termination-grace-period-seconds=300 --docker-image={docker_image}
    --base-docker-image={base_docker_image} --script-dir={stage} *xpk_option --command={command}
"""
SBATCH = """
    sbatch --job-name={name} --nodes={nodes} --ntasks-per-node={gpus_per_node}
    --gpus-per-node={gpus_per_node} --time={time} --signal=B:USR1@{save_before} --output=%x-%j.log
    --open-mode=append --requeue *sbatch_option {root}/launch/slurm_job.sh
    --container-image={container} --container-mounts={mounts} --container-workdir={workdir}
    {psynth} train *run
"""
