# Completion of crashctl(1) for bash.

_crashctl_matches() {
    local root=() i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --root) root=(--root "${COMP_WORDS[i + 1]}") ;;
        --root=*) root=("${COMP_WORDS[i]}") ;;
        esac
    done
    # The id follows date and time; what is no id is not offered.
    crashctl "${root[@]}" --quiet --no-legend --color=never list -n 200 2>/dev/null |
        awk '$3 ~ /^[0-9a-z]+$/ { print $3 }'
}

_crashctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local verbs='list info dump debug bundle top analyze delete pin unpin vacuum status verify reindex install uninstall stats report want follow kdump doctor'
    local common='-h --help --version --root -q --quiet --no-pager --no-legend --color --debug --fleet'
    local verb= options= i
    COMPREPLY=()

    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --root | --color | -S | --since | -U | --until | -n | --lines | -F | --field | -D | --directory | --file | -o | --output | --host | --label) ((i++)) ;;
        -*) ;;
        *)
            verb=${COMP_WORDS[i]}
            break
            ;;
        esac
    done

    case $prev in
    --root | -D | --directory)
        compopt -o dirnames 2>/dev/null
        return
        ;;
    -o | --output | --file | --vmlinux | --identity)
        compopt -o default 2>/dev/null
        return
        ;;
    --color)
        mapfile -t COMPREPLY < <(compgen -W 'auto always never' -- "$cur")
        return
        ;;
    --by)
        mapfile -t COMPREPLY < <(compgen -W 'build host version label:' -- "$cur")
        return
        ;;
    --kind)
        mapfile -t COMPREPLY < <(compgen -W 'process kernel' -- "$cur")
        return
        ;;
    --debugger)
        mapfile -t COMPREPLY < <(compgen -W 'gdb lldb drgn crash' -- "$cur")
        return
        ;;
    -S | --since | -U | --until | --new-since)
        mapfile -t COMPREPLY < <(compgen -W 'today yesterday now -1h -1d' -- "$cur")
        return
        ;;
    -F | --field)
        mapfile -t COMPREPLY < <(compgen -W 'boot_id build_id cmdline comm container_id cwd exe explanation gid hostname id kind pid signal signal_name signature state tid title uid unit' -- "$cur")
        return
        ;;
    --signature | -n | --lines | -A | --debugger-arguments | --host | --label)
        return
        ;;
    esac

    case $verb in
    list) options='-S --since -U --until --kind --signature -n --lines -1 -r --reverse -F --field --all --json -D --directory --file --host --label' ;;
    info) options='-1 -S --since -U --until -n --lines -r --reverse -a --all --json -D --directory --file --host --label' ;;
    dump) options='-1 -S --since -U --until -o --output -f --force --all -D --directory --host --label --identity --mini' ;;
    debug) options='-1 -S --since -U --until --debugger -A --debugger-arguments --vmlinux --as-root --all -D --directory --host --label --identity --mini' ;;
    bundle) options='-1 -S --since -U --until -o --output -f --force --host --label --identity' ;;
    top) options='-S --since --new-since --by --kind -n --lines --json --host --label' ;;
    analyze) options='-1 -S --since -U --until --json' ;;
    delete) options='-f --force -y --yes --host --label' ;;
    vacuum) options='--dry-run --json' ;;
    verify) options='--deep --strict --json' ;;
    stats) options='-S --since -U --until --kind -n --lines --json --host --label' ;;
    report) options='-S --since -U --until --kind -o --output -f --force --host --label' ;;
    doctor) options='--crash --json' ;;
    status) options='--json' ;;
    follow) options='--json --host --label' ;;
    want) options='--host --label' ;;
    kdump) options='--json --allow-deletion' ;;
    esac

    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options $common" -- "$cur")
    elif [[ -z $verb ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$cur")
    else
        case $verb in
        list | info | dump | debug | top | analyze | delete | pin | unpin | stats | report | want)
            mapfile -t COMPREPLY < <(compgen -W "$(_crashctl_matches)" -- "$cur")
            ;;
        esac
    fi
}

complete -F _crashctl crashctl
