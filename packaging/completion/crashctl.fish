# Completion of crashctl(1) for fish.

function __crashctl_matches
    set -l words (commandline -opc)
    set -l root
    if set -l place (contains -i -- --root $words)
        set root --root $words[(math $place + 1)]
    end
    crashctl $root --quiet --no-legend --color=never list -n 200 2>/dev/null |
        string match -r '^\S+ \S+ [0-9a-z]+(?= )' | string replace -r '^\S+ \S+ ' ''
end

set -l verbs list info dump debug bundle top analyze delete pin unpin vacuum status verify reindex install uninstall stats report want follow kdump doctor

complete -c crashctl -f

complete -c crashctl -s h -l help -d 'Show a short help'
complete -c crashctl -l version -d 'Show the version'
complete -c crashctl -l root -x -a '(__fish_complete_directories)' -d 'Root of all paths of crashd'
complete -c crashctl -s q -l quiet -d 'Print no notes on standard error'
complete -c crashctl -l no-pager -d 'Do not pipe output into a pager'
complete -c crashctl -l no-legend -d 'Print no column headings'
complete -c crashctl -l color -x -a 'auto always never' -d 'Use colours'
complete -c crashctl -l debug -d 'Print a traceback with every error'
complete -c crashctl -l fleet -d 'Ask the index of a fleet'

complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a list -d 'List crashes, newest last'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a info -d 'Show everything known about a crash'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a dump -d 'Write the core of a crash to a file or a pipe'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a debug -d 'Open a crash in a debugger'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a bundle -d 'Save a crash with everything needed to debug it elsewhere'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a top -d 'List signatures, most frequent first'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a analyze -d 'Analyse a crash again'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a delete -d 'Delete crashes and their cores'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a pin -d 'Protect crashes from deletion'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a unpin -d 'Allow pinned crashes to be deleted again'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a vacuum -d 'Delete what exceeds the retention limits now'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a status -d 'Show the status of the daemon'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a verify -d 'Check the store against its index'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a reindex -d 'Rebuild the index from the store'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a install -d 'Register crashd as the crash handler of the kernel'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a uninstall -d 'Restore the previous crash handler'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a stats -d 'Show crash counts over time'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a report -d 'Write an HTML report of recent crashes'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a want -d 'Ask hosts of a fleet for cores'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a follow -d 'Print crashes as they happen'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a kdump -d 'Check whether a kernel crash would leave a dump'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a doctor -d 'Check that crashes on this host will be caught'

complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug bundle top analyze delete pin unpin stats report want' -a '(__crashctl_matches)'

complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug bundle analyze top stats report' -s S -l since -x -a 'today yesterday now' -d 'Crashes at or after TIME'
complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug bundle analyze stats report' -s U -l until -x -a 'today yesterday now' -d 'Crashes at or before TIME'
complete -c crashctl -n '__fish_seen_subcommand_from list top stats report' -l kind -x -a 'process kernel' -d 'Crashes of this kind only'
complete -c crashctl -n '__fish_seen_subcommand_from list' -l signature -x -d 'Crashes with this signature only'
complete -c crashctl -n '__fish_seen_subcommand_from list info top stats' -s n -l lines -x -d 'Show at most N'
complete -c crashctl -n '__fish_seen_subcommand_from list' -s 1 -d 'Only the newest crash'
complete -c crashctl -n '__fish_seen_subcommand_from list info' -s r -l reverse -d 'Newest first'
complete -c crashctl -n '__fish_seen_subcommand_from list' -s F -l field -x -a 'comm exe unit signal signature title uid pid id' -d 'Print only the values of FIELD'
complete -c crashctl -n '__fish_seen_subcommand_from list dump debug' -l all -d 'Crashes of all hosts in the store'
complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug' -s D -l directory -x -a '(__fish_complete_directories)' -d 'Read the store in DIR'
complete -c crashctl -n '__fish_seen_subcommand_from list info' -l file -r -F -d 'Read these indexes instead of a store'
complete -c crashctl -n '__fish_seen_subcommand_from info dump debug bundle analyze' -s 1 -d 'The newest crash of all'
complete -c crashctl -n '__fish_seen_subcommand_from info' -s a -l all -d 'Also show environment, maps and limits'
complete -c crashctl -n '__fish_seen_subcommand_from dump bundle report' -s o -l output -r -F -d 'Write to FILE'
complete -c crashctl -n '__fish_seen_subcommand_from dump bundle report' -s f -l force -d 'Replace FILE if it exists'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -l debugger -x -a 'gdb lldb drgn crash' -d 'Debugger'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -s A -l debugger-arguments -x -d 'Extra arguments for the debugger'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -l vmlinux -r -F -d 'Vmlinux of the kernel that crashed'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -l as-root -d 'Run the debugger as root'
complete -c crashctl -n '__fish_seen_subcommand_from top' -l new-since -x -a 'today yesterday' -d 'Only signatures first seen since TIME'
complete -c crashctl -n '__fish_seen_subcommand_from delete' -s f -l force -d 'Also delete pinned crashes'
complete -c crashctl -n '__fish_seen_subcommand_from delete' -s y -l yes -d 'Do not ask for confirmation'
complete -c crashctl -n '__fish_seen_subcommand_from vacuum' -l dry-run -d 'Only show what would be deleted'
complete -c crashctl -n '__fish_seen_subcommand_from verify' -l deep -d 'Also decompress every core'
complete -c crashctl -n '__fish_seen_subcommand_from verify' -l strict -d 'Like --deep; also report unowned files'
complete -c crashctl -n '__fish_seen_subcommand_from doctor' -l crash -d 'Also crash a test process and follow it'
complete -c crashctl -n '__fish_seen_subcommand_from kdump' -l allow-deletion -d 'Let crashd.service delete dumps elsewhere'
complete -c crashctl -n '__fish_seen_subcommand_from list info top analyze vacuum status verify stats follow kdump doctor' -l json -d 'Print JSON'
complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug bundle top delete stats report follow want' -l host -x -d 'Of this host only'
complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug bundle top delete stats report follow want' -l label -x -d 'Of hosts with this label only'
complete -c crashctl -n '__fish_seen_subcommand_from dump debug bundle' -l identity -r -F -d 'Key for encrypted cores'
complete -c crashctl -n '__fish_seen_subcommand_from dump debug' -l mini -d 'Fetch only what a stack needs'
complete -c crashctl -n '__fish_seen_subcommand_from top' -l by -x -a 'build version label:' -d 'Count by'
