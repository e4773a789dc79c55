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

set -l verbs list info dump debug bundle top analyze delete pin unpin vacuum status verify reindex install uninstall stats report follow kdump doctor

complete -c crashctl -f

complete -c crashctl -s h -l help -d 'Show a short help'
complete -c crashctl -l version -d 'Show the version'
complete -c crashctl -l root -x -a '(__fish_complete_directories)' -d 'Put every path below DIR'
complete -c crashctl -s q -l quiet -d 'No notes on stderr'
complete -c crashctl -l no-legend -d 'No column headings'
complete -c crashctl -l color -x -a 'auto always never' -d Colours
complete -c crashctl -l debug -d 'Show a traceback with an error'

complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a list -d 'List crashes, the newest last'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a info -d 'Show all that is known of one crash'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a dump -d 'Write the core of one crash'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a debug -d 'Open the core in a debugger'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a bundle -d 'Pack a crash for another machine'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a top -d 'List signatures, the most frequent first'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a analyze -d 'Have a crash analysed again'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a delete -d 'Delete crashes and their cores'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a pin -d 'Keep crashes from being deleted'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a unpin -d 'Undo pin'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a vacuum -d 'Delete what retention gives up'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a status -d 'Tell how the daemon is'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a verify -d 'Compare the store with its index'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a reindex -d 'Rebuild the index from the store'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a install -d 'Register as the crash handler of the kernel'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a uninstall -d 'Give the registration back'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a stats -d 'Draw how often what crashed'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a report -d 'Write a page about the crashes'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a follow -d 'Print crashes as they happen'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a kdump -d 'Tell whether a crash of the kernel would leave a dump'
complete -c crashctl -n "not __fish_seen_subcommand_from $verbs" -a doctor -d 'Check that everything is in place'

complete -c crashctl -n '__fish_seen_subcommand_from list info dump debug bundle top analyze delete pin unpin stats report' -a '(__crashctl_matches)'

complete -c crashctl -n '__fish_seen_subcommand_from list top stats report' -s S -l since -x -a 'today yesterday now' -d 'At or after TIME'
complete -c crashctl -n '__fish_seen_subcommand_from list stats report' -s U -l until -x -a 'today yesterday now' -d 'At or before TIME'
complete -c crashctl -n '__fish_seen_subcommand_from list top stats report' -l kind -x -a 'process kernel' -d 'Of this kind only'
complete -c crashctl -n '__fish_seen_subcommand_from list' -l signature -x -d 'With this signature only'
complete -c crashctl -n '__fish_seen_subcommand_from list top stats' -s n -l lines -x -d 'As many only'
complete -c crashctl -n '__fish_seen_subcommand_from list' -s 1 -d 'The newest only'
complete -c crashctl -n '__fish_seen_subcommand_from list' -s r -l reverse -d 'The newest first'
complete -c crashctl -n '__fish_seen_subcommand_from info dump debug bundle analyze' -s 1 -d 'The newest of all'
complete -c crashctl -n '__fish_seen_subcommand_from info' -s a -l all -d 'Environment, maps, limits too'
complete -c crashctl -n '__fish_seen_subcommand_from dump bundle report' -s o -l output -r -F -d 'Write to FILE'
complete -c crashctl -n '__fish_seen_subcommand_from dump bundle report' -s f -l force -d 'Replace FILE if it exists'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -l debugger -x -a 'gdb drgn crash' -d 'Which one'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -s A -l debugger-arguments -x -d 'More arguments for it'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -l vmlinux -r -F -d 'The kernel that a dump is of'
complete -c crashctl -n '__fish_seen_subcommand_from debug' -l as-root -d 'Run it as root'
complete -c crashctl -n '__fish_seen_subcommand_from top' -l new-since -x -a 'today yesterday' -d 'First seen at or after TIME'
complete -c crashctl -n '__fish_seen_subcommand_from delete' -s f -l force -d 'Delete pinned ones too'
complete -c crashctl -n '__fish_seen_subcommand_from delete' -s y -l yes -d 'Do not ask'
complete -c crashctl -n '__fish_seen_subcommand_from vacuum' -l dry-run -d 'Only tell what would be deleted'
complete -c crashctl -n '__fish_seen_subcommand_from verify' -l deep -d 'Decompress every core, too'
complete -c crashctl -n '__fish_seen_subcommand_from verify' -l strict -d 'Account for every file of the store as well'
complete -c crashctl -n '__fish_seen_subcommand_from doctor' -l crash -d 'Really crash a process, and check'
complete -c crashctl -n '__fish_seen_subcommand_from list info top analyze vacuum status verify stats follow kdump doctor' -l json -d 'Machine-readable output'
