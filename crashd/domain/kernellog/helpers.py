"""Functions of the kernel that appear in traces but are never to blame. Pure.

A helper makes the report (`dump_stack`, `kasan_report`, `panic`), is the entry of a trap, or only
does what its caller asks: copying, locking, counting references, maintaining lists and trees,
allocating, waiting, printing. Patterns match families of names, because no list of all names would
stay complete. Names come without the suffixes that a compiler adds (`normal_name`).
"""

import re
from functools import lru_cache
from typing import Final

from crashd.domain.kernellog.signature import normal_name

__all__ = ["is_entry", "is_helper", "is_irq", "is_irq_entry", "is_report", "skips"]

_REPORTS: Final = (
    r"_*(?:dump|show)_(?:stack|trace|regs|backtrace)\w*|unwind_backtrace|(?:nmi_|v|__)?panic",
    r"_*warn(?:_\w+)?|report_bug|_*report_(?!stall)\w*(?:fault|bug|irq|failure)|spin_(?:dump|bug)",
    r"_*(?:asan|kasan|kmsan|msan|kcsan|kfence)_(?:\w*report|warning|object_err|bug)\w*",
    r"kasan_end_\w+",
    r"(?:print|end|start)_report\w*|print_address_description\w*|ubsan_\w+|_*ubsan_handle\w*",
    r"handle_overflow|lockdep_rcu_suspicious|print_\w*(?:bug|deadlock|usage|imbalance|held)\w*",
    r"debug_print_object|_*might_(?:sleep|resched)|__cant_sleep|__might_fault",
    r"check_preemption_disabled|__schedule_bug|bad_page\w*|print_bad_p[tm]\w+|object_err|slab_err",
    r"refcount_warn_saturate|refcount_error_report|fortify_panic|__fortify_report|usercopy_\w+",
    r"\w*assert\w*fail\w*|assfail|asswarn|skb_(?:over_|under_)?panic|__stack_chk_fail",
    r"out_of_line_bug|_*\w{0,32}fs_panic",
    r"rust_helper_BUG|rust_begin_unwind|__rustc::rust_begin_unwind|kernel::panic\w*",
    r"core::panicking::.+",
    r"core::(?:option|result|slice|str|cell)::(?:\w+::)*\w*(?:fail|failed|panic)\w*",
)
_TRAPS: Final = (
    r"(?:asm_)?exc_\w+|do_(?:error_)?trap\w*|do_invalid_op|invalid_op|do_general_protection",
    r"general_protection|_*do_page_fault|_*page_fault|async_page_fault|do_double_fault",
    r"double_fault",
    r"error_entry|oops_\w+|_*die(?:_\w+)?|_*bad_area\w*|no_context|page_fault_oops|mm_fault_error",
    r"kernelmode_fixup_or_oops|do_(?:user_addr|kern_addr)_fault|_*fixup_bug|handle_bug|cfi_\w+",
    r"handle_cfi_failure|do_divide_error|divide_error|handle_mm_fault_error|crash_kexec",
    r"__crash_kexec|machine_kexec|__invalid_\w+|_*bug_at\w*|__bug_on\w*|__bug\b|bugverbose_\w+",
    # arm64, arm32
    r"do_(?:mem_abort|translation_fault|kernel_fault|sea|sp_pc_abort|tag_check_fault"
    r"|alignment_fault)",
    r"do_bad_area|_*do_kernel_fault|el1\w*|do_el1_\w+|brk_handler|bug_(?:brk_)?handler",
    r"do_debug_exception",
    r"call_(?:el1_)?break_hook|do_brk64|do_undefinstr|do_undef_instr|bad_mode",
    r"\w*bad_(?:mode|stack)",
    r"arm64_serror\w*|do_serror|do_DataAbort|do_PrefetchAbort|__(?:dabt|und|pabt)_svc",
    r"v[67]_\w+abort",
    # riscv, s390, ppc, mips, loongarch
    r"do_trap_\w+|handle_exception|ret_from_exception|excp_\w+|pgm_check_\w+|__do_pgm_check",
    r"illegal_op",
    r"monitor_event_\w+|do_(?:dat|protection|asce)_exception|do_report_trap|default_trap_handler",
    r"pgm_no_context|handle_kernel_page_fault|program_check_\w+|_*do_program_check|data_access_\w+",
    r"hash__do_page_fault|bad_page_fault|bad_kernel_\w+|interrupt_return\w*",
    r"do_(?:bp|ri|ade|ale|tr|fpe)",
    r"tlb_do_page_fault_\d|handle_(?:tlb\w|ade\w?|ri|bp|tr|ov|ale)(?:_int)?",
)
_PRIMITIVES: Final = (
    # sanitizers and tracers
    r"_*(?:asan|kasan|kmsan|msan|kfence|kcsan|tsan|ubsan|sanitizer)_\w+|kasan\w*|kcov_\w+",
    r"check_(?:memory_region|region_inline|canary|heap_object|object_size|kcov_mode)\w*",
    r"__check_(?:heap_object|object_size)\w*|read_word_at_a_time|write_comp_data|instrument_\w+",
    r"get_report_\w+|set_track\w*|save_stack\w*|stack_depot_\w+|perf_trace_\w+|__?traceiter_\w+",
    r"trace_(?:event|hardirqs|preempt)_\w+|__bpf_trace_\w+|ftrace_\w+call\w*|__fentry__",
    r"kprobe_\w*handler\w*",
    # memory and strings
    r"(?:__pi_|_*)mem(?:cpy|set|move|cmp|chr|scan|zero|dup)\w*|rep_(?:movs|stos)_alternative",
    r"(?:sized_|__pi_|_*)str\w{0,5}(?:cpy|cat|cmp|len|str|chr|spn|sep|pbrk|dup)\w{0,12}",
    r"copy_(?:user|mc)_\w+|copy_page",
    r"_*copy_(?:from|to)_(?:user|kernel|bpfptr|sockptr)\w*",
    r"_*copy_(?:from|to|page_to|page_from)_iter\w*|\w*copy_to_iter\w*|copy(?:in|out)(?:_nocache)?",
    r"raw_copy_\w+|_*arch_copy_\w+|_inline_copy_\w+|_*(?:get|put)_user(?!_pages|_ns)\w*",
    r"_*clear_(?:user|page)\w*|check_zeroed_\w+",
    r"_*might_\w+|csum_\w+|crc(?:\d|_)\w*|jhash\w*|xxh\d+\w*|\w*snprintf|v?s(?:c?n)?printf",
    r"kv?asprintf|_*(?:get_random|prandom)_\w+|_*[mun]secs_to_jiffies",
    r"string(?:_nocheck)?|pointer|number|format_decode|va_format|hex_string|vbin_printf",
    r"bstr_printf",
    r"v?printk\w*|_+printk\w*|vprintk_\w+|_?sched_show_task|show_state_filter",
    r"_?(?:dev|netdev)_(?:info|notice|warn|err|alert|crit|emerg|printk)",
    r"(?:_|arch_|raw_|instrument_)*atomic(?:_long|64)?_(?:fetch_|try_|cond_)*(?:add|and|andnot|cmpxchg"
    r"|dec|inc|or|read|set|sub|xchg|xor)(?:_\w+)?",
    r"find_(?:first|next|last|nth)_\w*bit\w*|_find_(?:first|next|last)_\w+",
    r"(?:_|arch_)*(?:test_and_)?(?:set|clear|change|test)_bit\w*",
    r"(?:__raw_)?(?:read|write)[bwlq](?:_relaxed)?",
    r"(?:in|out)s?[bwl]|_*io(?:read|write)\d\w*|logic_(?:in|out)s?[bwl]|__?const_udelay",
    r"_*[un]delay|delay_\w+",
    r"__delay|read_hpet|cpu_relax|\w*_indirect_thunk_\w*|__x86_return_thunk",
    r"preempt_(?:schedule|count)\w*",
    # allocation
    r"_*(?:devm_)?(?:k|v|kv)(?:m|z|c|re)alloc(?:_\w+)?|_*(?:k|v|kv|kz)free(?:_\w+)?",
    r"_*(?:kmem_cache|slab)_\w+",
    r"vunmap\w*|_*do_kmalloc\w*|_*kmalloc_\w+|new_slab\w*|mm_account_\w+|memcg_slab_\w+",
    r"allocate_slab\w*|_*alloc_(?:frozen_)?pages?\w*|_*free_(?:frozen_|unref_)?pages?\w*",
    r"__folio_alloc\w*",
    r"folio_alloc\w*|vma_alloc_\w+|get_page_from_freelist|prep_new_page|post_alloc_hook|rmqueue\w*",
    r"_*get_(?:free|zeroed)_pages?\w*|mempool_\w*alloc\w*|should_fail\w*|__should_\w+|fail_dump",
    r"kmemdup\w*|kstrn?dup\w*|free_large_kmalloc|free_pcppages_bulk|cache_alloc\w*|____cache_alloc",
    # the page cache's end of a file
    r"truncate_(?:inode_pages|inode_folio|inode_partial_folio|cleanup_folio|pagecache)\w*|ifs_\w+",
    r"folio_(?:invalidate|cancel_dirty)|iomap_invalidate_folio",
    # locks and waiting
    r"_*folio_(?:un|try)?lock\w*|_*(?:un|try)?lock_page\w*|_*folio_wait_\w+|wait_on_page_\w+",
    r"_*(?:raw_)?(?:spin|read|write)_(?:try)?(?:un)?(?:re)?lock\w*|do_raw_\w+lock\w*",
    r"\w*queued_\w*lock_slowpath",
    r"_?raw_\w+_(?:try)?(?:un)?lock\w*|raw_spin_rq_\w+|_*(?:ww_)?mutex_\w*lock\w*",
    r"debug_(?:spin|mutex)\w*",
    r"mutex_(?:remove_waiter|spin_on_owner|optimistic_spin)|_*(?:down|up)",
    r"_*(?:down|up)_(?:read|write)\w*",
    r"down_(?:try|inter|kill|time)\w+|_*rwsem_\w+|call_rwsem_\w+",
    r"_*rt_(?:mutex|spin|read|write)\w*|rwbase_\w+",
    r"_*percpu_(?:down|up)_\w+|_*lock_(?:acquire|release|acquired|contended|is_held|class)\w*",
    r"lockdep_\w+",
    r"check_(?:no)?wait_context\w*|register_lock_class|assign_lock_key|reacquire_held_locks",
    r"osq_(?:un)?lock\w*",
    r"look_up_lock_class|lock_stack\w*",
    r"check_(?:prev|prevs|noncircular|deadlock|chain|irq_usage)\w*|validate_chain",
    r"mark_(?:lock|held)\w*|find_lock_lock|csd_lock_wait|_*pv_\w+",
    r"_*native_\w*(?:wait|halt|pause)\w*",
    r"local_bh_(?:en|dis)able\w*|__local_bh_\w+|_*rcu_read_(?:un)?lock\w*|seqprop_\w+|bit_spin_\w+",
    r"complete(?:_all)?|_*(?:do_)?wait_for_(?:common|completion)\w*|finish_wait",
    r"prepare_to_wait\w*|_*wake_up",
    r"_*wake_up_(?:common|locked|sync|all|bit|pollfree|interruptible)\w*",
    r"autoremove_wake_function|default_wake_function",
    r"(?:add|remove)_wait_queue\w*|kthread_(?:stop|should|park|parkme)\w*|_*kthread_parkme"
    r"|_*schedule_timeout\w*|(?:init|cleanup)_srcu_struct\w*",
    # lists, trees, references, objects, and work that is only queued or cancelled
    r"_*(?:h?list|hlist_(?:nulls|bl)|plist|klist)_(?:add|del|replace|move|splice|empty|remove"
    r"|put|valid)\w*|__list_\w+",
    r"_*rb_(?:erase|insert|next|prev|first|last|replace|link|find|add)\w*|__rb_\w+|xas?_\w+",
    r"_+xas?_\w+",
    r"iput|(?:fast_)?dput|mntput|lockref_\w+|_*radix_tree_\w+|_*refcount_\w+|_*kref_\w+|_*ref_tracker_\w+|_*kobject_\w+|add_uevent_var",
    r"debug_\w*object\w*|__debug_\w+|(?:timer|work)_is_static_object|get_device_parent|put_device",
    r"device_(?:add|del|unregister|destroy|release|for_each_child|remove_file|create_file"
    r"|initial_probe)",
    r"(?:drop|inc|set|clear)_nlink|cpumask_\w+|print_hex_dump\w*|hex_dump_\w+|seq_(?:v?printf|puts?|putc|write)",
    r"_*(?:ida|idr)_\w+|_*(?:rhashtable|rhltable|rht)_\w+|_*(?:llist|list_lru|bitmap|hweight)_\w+",
    r"devres_release\w*|(?:\w+_)?sysfs_(?:remove|create|add|put|warn)_?\w*|unregister_netdev\w*",
    r"rollback_registered\w*",
    r"tty_unregister_device|hwrng_unregister|i2c_del_adapter|__unregister_client",
    r"usb_(?:submit|hcd_submit|kill|start_wait)_(?:anchored_)?urbs?",
    r"usb_(?:control|bulk|interrupt)_msg\w*|dummy_urb_enqueue",
    r"_*skb_(?:put|push|pull)(?:_data|_zero|_u\d+|_inline)?|_*(?:kfree|consume)_skb\w*",
    r"napi_consume_skb|kfree_skbmem",
    r"_*flush_work\w*|_*cancel_(?:delayed_)?work\w*|__cancel_work_timer",
    r"_*(?:flush|drain|destroy)_workqueue",
    r"try_to_grab_pending|(?:timer_)?del(?:ete)?_timer\w*|timer_(?:delete|shutdown|reduce)\w*",
    r"try_to_del_timer\w*|_*mod_timer\w*|add_timer\w*|lock_timer_base",
)
_REPORT = re.compile("|".join(_REPORTS))
_HELPER = re.compile("|".join((*_REPORTS, *_TRAPS, *_PRIMITIVES)))
_ENTRY = re.compile(
    r"(?:entry_|do_syscall_|do_(?:int80|fast|el0)|el0t?_|invoke_syscall|ret_from_|ret_to_|ret_fast_"
    r"|system_call|sysenter|tracesys|kthread$|kernel_thread|secondary_startup|start_secondary"
    r"|x86_64_start|cpu_startup|__do_syscall$|handle_exception|start_kernel|kthread_\w*handler"
    r"|handle_sys(?:call\w*|64|n32|o32)?$|syscall_common|work_pending|__sys_trace)"
)
_IRQ_ENTRY = re.compile(
    r"(?:asm_)?sysvec_\w+|(?:smp_)?(?:\w+_)?apic_timer_interrupt|asm_common_interrupt"
    r"|common_interrupt"
    r"|ret_from_intr|el1h?_(?:64_)?f?irq\w*|el1_interrupt|__irq_svc|call_on_irq_stack"
    r"|\w*_int_handler"
    r"|decrementer_common\w*|timer_interrupt|hardware_interrupt_\w*|do_IRQ|handle_int|handle_vint"
    r"|except_vec_vi\w*|do_vint|reschedule_interrupt|call_function_interrupt|asm_exc_nmi"
    r"|end_repeat_nmi|(?:default_)?do_nmi|nmi"
    r"|do_irq|do_ext_irq|do_io_irq|do_ext_interrupt|riscv_intc_irq|handle_arch_irq"
)
_IRQ = re.compile(
    r"\w*nmi\w*|handle_\w*irq\w*|(?:__)?hrtimer_\w+|watchdog_\w+|tick_\w+|update_process_times"
    r"|rcu_\w+|print_\w*stall\w*|check_cpu_stall\w*|perf_event_\w+|arch_timer_\w+"
    r"|\w*irq_\w*(?:enter|exit)\w*"
    r"|irqentry_\w+|generic_handle_\w+|do_interrupt_handler|gic_\w+|trigger_\w*backtrace\w*"
    r"|sched_show_task"
    r"|dump_cpu_task|scheduler_tick|sched_tick|local_apic_timer_interrupt|__?sysvec_\w+"
    r"|profile_tick|timerqueue_\w+|(?:enqueue|_*remove|_*run)_hrtimer"
)


@lru_cache(maxsize=4096)
def is_helper(function: str) -> bool:
    """Return whether a function is a helper in every kind of crash."""
    return _HELPER.fullmatch(normal_name(function)) is not None


@lru_cache(maxsize=1024)
def is_report(function: str) -> bool:
    """Return whether a function reports what its callers did."""
    return _REPORT.fullmatch(normal_name(function)) is not None


@lru_cache(maxsize=1024)
def is_entry(function: str) -> bool:
    """Return whether the kernel is entered here; frames below do not belong to its work."""
    return _ENTRY.match(normal_name(function)) is not None


@lru_cache(maxsize=1024)
def is_irq_entry(function: str) -> bool:
    """Return whether this is the entry of an interrupt."""
    return _IRQ_ENTRY.fullmatch(normal_name(function)) is not None


@lru_cache(maxsize=1024)
def is_irq(function: str) -> bool:
    """Return whether a function belongs to the interrupt that found a stall."""
    return is_irq_entry(function) or _IRQ.fullmatch(normal_name(function)) is not None


def skips(function: str, skip: re.Pattern[str] | None) -> bool:
    """Return whether a function is a helper, or matches the `skip` of a head."""
    if is_helper(function):
        return True
    return skip is not None and skip.fullmatch(normal_name(function)) is not None
